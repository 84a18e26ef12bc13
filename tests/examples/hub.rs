//! The hub of the tests, to try `ddpm push` and `hf://` by hand: `cargo run -p ddpm-tests --example hub`.

use ddpm_tests::hub::{FakeHub, TOKEN};

fn main() {
    let hub = FakeHub::start();
    println!("export HF_ENDPOINT={} HF_TOKEN={TOKEN}", hub.endpoint());
    println!("# It has no repositories, and forgets them when this ends: press Enter.");
    // The end of the input is as good as a key.
    let _ = std::io::stdin().read_line(&mut String::new());
    hub.requests().iter().for_each(|request| println!("{request}"));
}
