//! The end of a text file.

use time::OffsetDateTime;

use crate::guest::{Guest, GuestPath};
use crate::tree::FileKind;

/// The last lines of a file.
pub(super) struct Tail {
    text: String,
    /// Whether there is more before them.
    pub is_cut: bool,
    /// When the file was last written.
    pub modified: OffsetDateTime,
}

impl Tail {
    /// Its whole lines, oldest first.
    pub fn lines(&self) -> impl DoubleEndedIterator<Item = &str> {
        self.text.lines()
    }
}

/// The last `most` bytes of a regular file, links followed; `None` where it cannot be read.
pub(super) fn read(guest: &Guest, path: &GuestPath, most: u64) -> Option<Tail> {
    let path = guest.resolve(path).ok()?;
    let tree = guest.tree();
    let meta = tree.lstat(path.as_path()).ok()?;
    if meta.kind != FileKind::Regular {
        return None;
    }
    let from = meta.size.saturating_sub(most);
    let length = usize::try_from(meta.size - from).ok()?;
    let bytes = tree.read_range(path.as_path(), from, length).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let is_cut = from > 0;
    // The first line is then the end of one.
    let whole = match is_cut {
        true => text.split_once('\n')?.1,
        false => &text,
    };
    Some(Tail {
        text: whole.to_owned(),
        is_cut,
        modified: OffsetDateTime::from_unix_timestamp(meta.mtime).ok()?,
    })
}
