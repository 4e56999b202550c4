//! What people would be shown: nothing of a guest may move their cursor or colour their terminal.

/// Fails on control characters in a text for people.
pub fn text(text: &str) {
    let bad = text
        .chars()
        .find(|character| crate::base::escaping::misleads(*character));
    assert!(
        bad.is_none(),
        "{bad:?} would reach the terminal in {text:?}"
    );
}

/// The same for an error with all its causes.
pub fn error(error: &dyn std::error::Error) {
    text(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        text(&error.to_string());
        cause = error.source();
    }
}
