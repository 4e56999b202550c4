//! How the library speaks: it never prints or asks by itself.

/// A front end: terminal, serial console, or nobody.
pub trait Ui {
    /// A long step begins; `total` is in the step's own unit, `None` when it cannot be known.
    fn begin(&self, what: &str, total: Option<u64>) -> Box<dyn Progress>;

    /// Something the user should read while the work goes on.
    fn note(&self, text: &str);
}

/// One long step under way; dropping it ends the step. Any thread can tell of what it did.
pub trait Progress: Send + Sync {
    /// So much more is done.
    fn advance(&self, steps: u64);
    /// What is being worked on now.
    fn message(&self, text: &str);
}

/// A front end that says nothing: tests and `--json`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Ui for Silent {
    fn begin(&self, _what: &str, _total: Option<u64>) -> Box<dyn Progress> {
        Box::new(Silent)
    }
    fn note(&self, _text: &str) {}
}

impl Progress for Silent {
    fn advance(&self, _steps: u64) {}
    fn message(&self, _text: &str) {}
}
