//! Crash points for the tests: with the feature `fault-injection`, `RESCUE_ABORT_AT=N` aborts the process (no unwinding, no
//! clean-up) at the N-th point reached. Without the feature this is nothing.

/// Marks a place where a power cut is to be tried: after every single write, rename, unlink, fsync and phase.
#[cfg(feature = "fault-injection")]
pub fn point(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static REACHED: AtomicU64 = AtomicU64::new(0);
    let reached = REACHED.fetch_add(1, Ordering::Relaxed) + 1;
    if std::env::var("RESCUE_ABORT_AT").is_ok_and(|at| at == reached.to_string()) {
        eprintln!("fault injection: abort at point {reached}, {name}");
        if let Some(hook) = BEFORE_ABORT.get() {
            hook();
        }
        std::process::abort();
    }
}

/// Nothing, in the real program.
#[cfg(not(feature = "fault-injection"))]
pub fn point(_name: &str) {}

#[cfg(feature = "fault-injection")]
static BEFORE_ABORT: std::sync::OnceLock<fn()> = std::sync::OnceLock::new();

/// What happens right before the abort: the tests cut the power of the file systems there, so that only what was synchronised
/// survives. The first call counts.
#[cfg(feature = "fault-injection")]
pub fn before_abort(hook: fn()) {
    let _ = BEFORE_ABORT.set(hook);
}
