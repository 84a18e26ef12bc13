//! The binary `ddpm`; see the library for everything it does.

/// Keeps pages that were freed: a training step allocates what the last one dropped, and page faults are 10 to 15 % of
/// a step otherwise.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc.h, versions 2 and 3, for which the crate has no name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn main() -> std::process::ExitCode {
    // SAFETY: sets a number in mimalloc's table of options, before any other thread exists; -1 means never.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    // SAFETY: still no other thread exists.
    unsafe {
        ddpm_hub::disable_telemetry();
    }
    ddpm_cli::main()
}
