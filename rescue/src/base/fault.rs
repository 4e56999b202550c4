//! Faults for the tests, with the feature `fault-injection`; without it this is nothing. Every
//! system call that changes a guest goes through [`call`] (a test counts them with strace), so each
//! can be the last one before the power goes, or fail:
//!
//! - `RESCUE_ABORT_AT=N` aborts the process (no unwinding, no clean-up) right after the N-th call,
//!   or phase, that succeeded.
//! - `RESCUE_FAIL_AT=N` lets the N-th call fail, `N+` that one and all after it, with
//!   `RESCUE_FAIL_WITH=EIO` or `ENOSPC`. A disk that stays full still gives names and attributes
//!   back: there only calls that need room fail.
//! - `RESCUE_COUNT_CALLS=FILE` writes down there, one a line, every call that is made and every
//!   point that is reached.
//! - `RESCUE_SKIP_SPACE_CHECK=1` begins although there may be too little room, so that the disk
//!   gets full in the middle.
//!
//! With the feature, writing is done in at least two calls, so that a file that is only half
//! written is among the states.

#[cfg(not(feature = "fault-injection"))]
use rustix::io::Errno;

/// Makes a system call that changes the guest.
#[cfg(not(feature = "fault-injection"))]
#[inline]
pub fn call<T>(_name: &'static str, make: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    make()
}

/// Marks the end of a phase: a place where a power cut is to be tried, though no call is made
/// there.
#[cfg(not(feature = "fault-injection"))]
pub fn point(_name: &str) {}

/// How much of `bytes` is written with one call.
#[cfg(not(feature = "fault-injection"))]
pub fn piece(bytes: &[u8], _is_first: bool) -> &[u8] {
    bytes
}

/// Whether the look at the free space is left out.
#[cfg(not(feature = "fault-injection"))]
pub fn skips_space_check() -> bool {
    false
}

#[cfg(feature = "fault-injection")]
pub use injected::{before_abort, call, piece, point, skips_space_check};

#[cfg(feature = "fault-injection")]
mod injected {
    use std::io::Write as _;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    use rustix::io::Errno;

    /// Calls that need no room on a file system: what a full disk still does.
    const WITHOUT_ROOM: [&str; 8] = [
        "unlink",
        "rmdir",
        "fsync",
        "syncfs",
        "chown",
        "chmod",
        "futimens",
        "removexattr",
    ];

    static BEFORE_ABORT: OnceLock<fn()> = OnceLock::new();

    /// What happens right before the abort: the tests cut the power of the file systems there, so
    /// that only what was synchronised survives. The first call counts.
    pub fn before_abort(hook: fn()) {
        let _ = BEFORE_ABORT.set(hook);
    }

    /// Makes a system call that changes the guest, or fails instead.
    pub fn call<T>(
        name: &'static str,
        make: impl FnOnce() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        count("call", name);
        if let Some(error) = failure(name, CALLS.fetch_add(1, Ordering::Relaxed) + 1) {
            return Err(error);
        }
        let made = make()?;
        point(name);
        Ok(made)
    }

    fn failure(name: &str, number: u64) -> Option<Errno> {
        let at = std::env::var("RESCUE_FAIL_AT").ok()?;
        let (first, lasts) = match at.strip_suffix('+') {
            Some(first) => (first, true),
            None => (at.as_str(), false),
        };
        let first: u64 = first.parse().ok()?;
        let full = std::env::var("RESCUE_FAIL_WITH").is_ok_and(|with| with == "ENOSPC");
        let hit =
            number == first || (lasts && number > first && !(full && WITHOUT_ROOM.contains(&name)));
        if number == first {
            eprintln!("fault injection: call {number}, {name}, fails");
        }
        hit.then_some(if full { Errno::NOSPC } else { Errno::IO })
    }

    /// Marks the end of a phase, or of a call: a place where a power cut is to be tried.
    pub fn point(name: &str) {
        static REACHED: AtomicU64 = AtomicU64::new(0);
        count("point", name);
        let reached = REACHED.fetch_add(1, Ordering::Relaxed) + 1;
        if std::env::var("RESCUE_ABORT_AT").is_ok_and(|at| at == reached.to_string()) {
            eprintln!("fault injection: abort at point {reached}, {name}");
            if let Some(hook) = BEFORE_ABORT.get() {
                hook();
            }
            std::process::abort();
        }
    }

    fn count(what: &str, name: &str) {
        let Some(path) = std::env::var_os("RESCUE_COUNT_CALLS") else {
            return;
        };
        let file = std::fs::File::options()
            .append(true)
            .create(true)
            .open(path);
        let written = file.and_then(|mut file| writeln!(file, "{what} {name}"));
        assert!(written.is_ok(), "the calls cannot be counted: {written:?}");
    }

    /// How much of `bytes` is written with one call: half of them with the first.
    pub fn piece(bytes: &[u8], is_first: bool) -> &[u8] {
        if is_first {
            bytes.get(..bytes.len().div_ceil(2)).unwrap_or(bytes)
        } else {
            bytes
        }
    }

    /// Whether the look at the free space is left out.
    pub fn skips_space_check() -> bool {
        std::env::var_os("RESCUE_SKIP_SPACE_CHECK").is_some()
    }
}
