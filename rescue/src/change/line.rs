//! One line of a guest's text file is replaced; every other byte of the file stays.

use anyhow::{Context as _, Result, ensure};

use super::Change;
use crate::guest::{Guest, Origin};

/// Replaces the line `at`, which must read `old` (without its line feed), by `new`. Owner, mode and
/// everything else of the file stay.
///
/// # Errors
/// Where the file cannot be read, or the line is another one by now.
pub fn replace_line(guest: &Guest, at: &Origin, old: &str, new: &str) -> Result<Change> {
    let bytes = guest.read(&at.path)?;
    let index = at.line.and_then(|line| line.checked_sub(1));
    let index = index.with_context(|| format!("{at} names no line"))?;
    let lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
    let is_as_seen = lines.get(index).is_some_and(|line| *line == old.as_bytes());
    ensure!(is_as_seen, "{at} does not read \"{old}\" any more");
    let edited: Vec<&[u8]> = lines
        .iter()
        .enumerate()
        .map(|(number, line)| {
            if number == index {
                new.as_bytes()
            } else {
                line
            }
        })
        .collect();
    Ok(Change::write(guest, &at.path, edited.join(&b'\n'), 0o644)?)
}

/// Makes the line `at` a comment that says who did it.
///
/// # Errors
/// As [`replace_line`].
pub fn comment_out(guest: &Guest, at: &Origin, old: &str) -> Result<Change> {
    replace_line(guest, at, old, &format!("# commented out by rescue: {old}"))
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;
    use crate::change::Planned;
    use crate::guest::GuestPath;
    use crate::tree::MemoryTree;

    const FSTAB: &str =
        "# first\n/dev/sda1 / ext4 defaults 0 1\r\n/swap none swap sw 0 0\nlast without line feed";

    fn edited(line: usize, old: &str) -> Result<String> {
        let guest = MemoryTree::new().file("/etc/fstab", FSTAB).into_guest();
        let path = GuestPath::new("/etc/fstab");
        let change = comment_out(&guest, &Origin::line(path.clone(), line), old)?;
        let mut tree = Planned::over(guest.tree(), 0);
        tree.apply(&change)?;
        Ok(guest.with_tree(Rc::new(tree)).read_text(&path)?)
    }

    #[test]
    fn the_rest_of_the_file_stays_byte_for_byte() {
        let swap = "/swap none swap sw 0 0";
        let expected = FSTAB.replace(swap, &format!("# commented out by rescue: {swap}"));
        assert_eq!(edited(3, swap).unwrap(), expected);
        assert!(
            edited(4, "last without line feed")
                .unwrap()
                .ends_with("feed")
        );
    }

    #[test]
    fn another_line_is_refused() {
        for (line, old) in [(2, "/swap none swap sw 0 0"), (9, "x"), (0, "x")] {
            assert!(edited(line, old).is_err(), "{line}");
        }
    }
}
