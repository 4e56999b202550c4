//! Text of a guest made safe for a terminal.

use std::fmt::{self, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// Whether a character of a guest may not be shown as it is: it would move the cursor, or show
/// something else than what is there (Trojan Source, CVE-2021-42574: what turns the direction of
/// writing, and what is not seen at all).
pub fn misleads(character: char) -> bool {
    let invisible = matches!(character, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    character.is_control() || invisible
}

/// Text from a disk made safe to show: what [`misleads`] is escaped.
pub fn escape(text: &str) -> String {
    text.chars()
        .fold(String::with_capacity(text.len()), |mut safe, character| {
            if misleads(character) {
                safe.extend(character.escape_default());
            } else {
                safe.push(character);
            }
            safe
        })
}

/// A key of etcd in one line.
pub fn key(key: &[u8]) -> String {
    let mut shown = String::with_capacity(key.len());
    for chunk in key.utf8_chunks() {
        for character in chunk.valid().chars() {
            if misleads(character) {
                let _ = write!(shown, "{}", character.escape_default());
            } else {
                shown.push(character);
            }
        }
        for byte in chunk.invalid() {
            let _ = write!(shown, "\\x{byte:02x}");
        }
    }
    shown
}

/// Writes a path of a guest: what [`misleads`] is escaped, and bytes that are no UTF-8 are written
/// as `\\xNN`.
///
/// # Errors
/// Those of `f`.
pub fn write_path(f: &mut fmt::Formatter<'_>, path: &Path) -> fmt::Result {
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for character in chunk.valid().chars() {
            if misleads(character) {
                write!(f, "{}", character.escape_default())?;
            } else {
                write!(f, "{character}")?;
            }
        }
        for byte in chunk.invalid() {
            write!(f, "\\x{byte:02x}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_reaches_a_terminal_raw() {
        assert_eq!(key(b"/a\x1b[2J\xff"), "/a\\u{1b}[2J\\xff");
    }
}
