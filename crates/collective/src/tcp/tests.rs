#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::thread;

use super::*;

const QUICK: Patience =
    Patience { silence: Duration::from_millis(600), call: Duration::from_secs(5), rendezvous: Duration::from_secs(5) };

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn launch(rank: usize, world: usize, port: u16) -> Launch {
    Launch { rank, world, address: "127.0.0.1".into(), port, restarts: 0, run: String::new() }
}

fn connect(launch: &Launch, patience: Patience) -> Result<Tcp, CollectiveError> {
    Tcp::connect(launch, "config", "1", patience, &Arc::default())
}

/// What each of `world` ranks returns from `work`.
fn ranks<T: Send>(world: usize, patience: Patience, work: impl Fn(&Tcp) -> T + Sync) -> Vec<T> {
    let (port, work) = (free_port(), &work);
    thread::scope(|scope| {
        let one = |rank| move || work(&connect(&launch(rank, world, port), patience).unwrap());
        let threads: Vec<_> = (0..world).map(|rank| scope.spawn(one(rank))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Numbers whose sum depends on the order.
fn numbers(rank: usize, len: usize) -> Vec<f32> {
    (0..len).map(|at| ((at * 7919 + rank * 104_729) as f32).sin() * 10f32.powi(rank as i32 * 3 - 4)).collect()
}

#[test]
fn a_sum_is_taken_in_the_order_of_the_ranks_and_is_the_same_on_all_of_them() {
    // Several buckets, more than are sent ahead, and a last one that is smaller.
    let len = (AHEAD + 2) * BUCKET + 17;
    for world in 2..=4 {
        let mut want = numbers(0, len);
        for rank in 1..world {
            want.iter_mut().zip(numbers(rank, len)).for_each(|(sum, number)| *sum += number);
        }
        let sums = ranks(world, QUICK, |tcp| {
            let mut sum = numbers(tcp.rank(), len);
            tcp.all_reduce_sum(&mut sum).unwrap();
            tcp.leave();
            sum
        });
        assert!(sums.iter().all(|sum| *sum == want), "{world} ranks");
    }
}

#[test]
fn all_get_what_rank_0_has_and_what_everyone_says() {
    for world in 2..=4 {
        let got = ranks(world, QUICK, |tcp| {
            let mut first = numbers(tcp.rank(), BUCKET + 3);
            tcp.broadcast(&mut first).unwrap();
            tcp.barrier().unwrap();
            let all = tcp.gather(&vec![tcp.rank() as u8; tcp.rank()]).unwrap();
            tcp.leave();
            (first, all)
        });
        let said: Vec<Vec<u8>> = (0..world).map(|rank| vec![rank as u8; rank]).collect();
        assert!(got.iter().all(|(first, all)| *first == numbers(0, BUCKET + 3) && *all == said));
    }
}

#[test]
fn a_rank_that_vanishes_is_named_to_all_others_at_once() {
    let started = Instant::now();
    let ends = ranks(3, Patience { silence: Duration::from_secs(60), ..QUICK }, |tcp| {
        if tcp.rank() == 1 {
            // As a kill does: the connection closes without a word.
            tcp.links.close();
            return None;
        }
        let error = tcp.all_reduce_sum(&mut [1.0]).unwrap_err();
        assert_eq!(tcp.barrier().unwrap_err(), error, "every later call fails in the same way");
        Some(error)
    });
    for error in [&ends[0], &ends[2]] {
        let Some(CollectiveError::Lost { rank, why }) = error else { panic!("{error:?}") };
        assert!(rank.starts_with("rank 1 (process") && why == "its connection closed", "{rank}: {why}");
    }
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_rank_that_gives_no_sign_of_life_is_lost() {
    let port = free_port();
    let (silent, talks) = (Patience { silence: Duration::from_secs(60), ..QUICK }, QUICK);
    thread::scope(|scope| {
        // Its signs of life come so rarely that it seems to hang.
        let hung = scope.spawn(move || connect(&launch(1, 2, port), silent).unwrap());
        let tcp = connect(&launch(0, 2, port), talks).unwrap();
        let error = tcp.barrier().unwrap_err().to_string();
        assert!(error.starts_with("rank 1 (") && error.contains("is lost: no sign of life"), "{error}");
        let told = hung.join().unwrap().barrier().unwrap_err().to_string();
        assert_eq!(told, error);
    });
}

#[test]
fn a_rank_that_lives_but_does_not_come_is_lost_too() {
    let patience = Patience { call: Duration::from_millis(300), ..QUICK };
    let ends = ranks(2, patience, |tcp| {
        if tcp.rank() == 1 {
            thread::sleep(Duration::from_millis(900));
        }
        tcp.barrier().unwrap_err().to_string()
    });
    assert!(ends[0].contains("rank 1") && ends[0].contains("has not come to the same call"), "{ends:?}");
}

#[test]
fn waiting_longer_than_the_silence_is_no_loss_while_a_rank_lives() {
    ranks(2, QUICK, |tcp| {
        if tcp.rank() == 0 {
            thread::sleep(3 * QUICK.silence);
        }
        tcp.barrier().unwrap();
        tcp.leave();
    });
}

#[test]
fn a_rank_that_ends_with_an_error_says_why() {
    let stop = Arc::<AtomicBool>::default();
    let port = free_port();
    thread::scope(|scope| {
        let ended = |rank| move || connect(&launch(rank, 3, port), QUICK).unwrap();
        let (one, two) = (scope.spawn(ended(1)), scope.spawn(ended(2)));
        let zero = Tcp::connect(&launch(0, 3, port), "config", "1", QUICK, &stop).unwrap();
        let (one, two) = (one.join().unwrap(), two.join().unwrap());
        two.abort("the disk is on fire");
        for rank in [&zero, &one] {
            let error = rank.barrier().unwrap_err().to_string();
            assert!(error.starts_with("rank 2 (") && error.ends_with("has ended: the disk is on fire"), "{error}");
        }
    });
    assert!(stop.load(Ordering::Relaxed), "whatever else is waited for is given up");
}

#[test]
fn different_calls_are_found_out() {
    let errors = ranks(2, QUICK, |tcp| match tcp.rank() {
        0 => tcp.barrier().unwrap_err(),
        _ => tcp.all_reduce_sum(&mut [1.0]).unwrap_err(),
    });
    assert!(errors[0].to_string().contains("rank 1") && errors[0].to_string().contains("is out of step: Sum 0"));
    let errors = ranks(2, QUICK, |tcp| tcp.all_reduce_sum(&mut vec![1.0; 1 + tcp.rank()]).unwrap_err());
    assert!(errors[0].to_string().contains("found 8 bytes") || errors[0].to_string().contains("8 bytes, expected 1"));
}

/// The refusal of rank 1 of two, which is `other` or brings another configuration; and that the right one is let in afterwards.
fn refusal(other: &Launch, config: &str, version: &str) -> String {
    let port = other.port;
    thread::scope(|scope| {
        let zero = scope.spawn(move || connect(&Launch { restarts: 1, ..launch(0, 2, port) }, QUICK).unwrap().leave());
        let refused = Tcp::connect(other, config, version, QUICK, &Arc::default()).unwrap_err();
        let one = connect(&Launch { restarts: 1, ..launch(1, 2, port) }, QUICK).unwrap();
        one.leave();
        zero.join().unwrap();
        assert!(refused.is_setting());
        refused.to_string()
    })
}

#[test]
fn stale_and_foreign_ranks_are_refused_by_name_and_the_right_ones_still_meet() {
    let one = || Launch { restarts: 1, ..launch(1, 2, free_port()) };
    let stale = refusal(&Launch { restarts: 0, ..one() }, "config", "1");
    assert!(stale.contains("refuses rank 1 (process"), "{stale}");
    assert!(stale.contains("it is of restart \"0\", but rank 0 has \"1\""), "{stale}");
    assert!(refusal(&one(), "other", "1").contains("its configuration is \"other\", but rank 0 has \"config\""));
    assert!(refusal(&one(), "config", "2").contains("it is of ddpm \"2\""));
    assert!(refusal(&Launch { world: 3, ..one() }, "config", "1").contains("a WORLD_SIZE of \"3\""));
    assert!(refusal(&Launch { run: "x".into(), ..one() }, "config", "1").contains("of the launcher's run \"x\""));
}

#[test]
fn ranks_that_do_not_come_are_named_and_strangers_do_no_harm() {
    let port = free_port();
    let patience = Patience { rendezvous: Duration::from_millis(900), ..QUICK };
    let error = thread::scope(|scope| {
        let zero = scope.spawn(move || connect(&launch(0, 3, port), patience).unwrap_err());
        let stranger = || TcpStream::connect(("127.0.0.1", port));
        let mut stream =
            (0..100).find_map(|_| stranger().inspect_err(|_| thread::sleep(Duration::from_millis(5))).ok()).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nHost: nobody\r\n\r\n").unwrap();
        let one = scope.spawn(move || connect(&launch(1, 3, port), patience).unwrap_err());
        (zero.join().unwrap(), one.join().unwrap())
    });
    let CollectiveError::Missing { missing, rejected, .. } = &error.0 else { panic!("{error:?}") };
    assert_eq!(missing, &[2]);
    assert!(rejected.len() == 1 && rejected[0].contains("what it sends is not ours"), "{rejected:?}");
    assert!(error.0.to_string().contains("rank 2 did not come to 127.0.0.1:"), "{}", error.0);
    assert!(matches!(error.1, CollectiveError::Unreachable { .. }), "{}", error.1);
}

#[test]
fn a_stop_ends_the_waiting() {
    let stop = Arc::new(AtomicBool::new(true));
    for rank in 0..2 {
        let ended = Tcp::connect(&launch(rank, 2, free_port()), "config", "1", QUICK, &stop);
        assert_eq!(ended.unwrap_err(), CollectiveError::Stopped);
    }
}
