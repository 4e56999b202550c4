//! Looking into gzip files: what is inside, and whether a tar archive holds logs and nothing else.

use std::io::{self, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;

use crate::tree::{Tree, TreeError};

use super::names;
use super::sniff::{Kind, kind};

/// Compressed bytes of an archive that are looked through. A larger archive is kept.
pub const ARCHIVE_LIMIT: u64 = 256 << 20;

/// Unpacked bytes of a compressed file that are looked at.
const PEEK: usize = 16 << 10;

/// Members whose content is passed over at a time.
const CHUNK: usize = 64 << 10;

/// Bytes read from the guest at a time.
const READ: usize = 1 << 20;

/// What the first unpacked bytes of a gzip file are. A damaged one (cut by a full disk) is judged
/// by what can be unpacked.
pub fn peek_gzip(tree: &dyn Tree, path: &Path) -> Result<Kind, TreeError> {
    let mut source = TreeReader::new(tree, path, 2 * PEEK as u64);
    let mut head = Vec::new();
    // The end of the window looks like a cut file: what was unpacked before it is what counts.
    let cut = MultiGzDecoder::new(&mut source)
        .take(PEEK as u64)
        .read_to_end(&mut head)
        .is_err();
    if let Some(error) = source.error {
        return Err(error);
    }
    Ok(if head.is_empty() && cut {
        Kind::Unknown
    } else {
        kind(&head, b"", head.len() as u64)
    })
}

/// What an archive turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Archive {
    /// So many files, all of them logs.
    Logs(u64),
    /// Something else; says what.
    Other(String),
}

/// Looks through a gzipped tar archive of `size` bytes.
pub fn look_through(tree: &dyn Tree, path: &Path, size: u64) -> Result<Archive, TreeError> {
    if size > ARCHIVE_LIMIT {
        return Ok(Archive::Other(
            "too large an archive to look through".into(),
        ));
    }
    let mut source = TreeReader::new(tree, path, size);
    let outcome = members(&mut MultiGzDecoder::new(BufReader::with_capacity(
        CHUNK,
        &mut source,
    )));
    if let Some(error) = source.error {
        return Err(error);
    }
    Ok(outcome.unwrap_or_else(|_| Archive::Other("a damaged archive".into())))
}

/// Reads member after member of an unpacked tar stream.
fn members(stream: &mut dyn Read) -> io::Result<Archive> {
    let mut logs = 0;
    let mut long_name: Option<Vec<u8>> = None;
    loop {
        let mut header = [0u8; 512];
        stream.read_exact(&mut header)?;
        if header.iter().all(|byte| *byte == 0) {
            break;
        }
        let Some(member) = Member::parse(&header) else {
            return Ok(Archive::Other("not a tar archive".into()));
        };
        let padded = member
            .size
            .checked_next_multiple_of(512)
            .ok_or_else(|| io::Error::other("impossible size"))?;
        match member.kind {
            // GNU's long name, and pax' extended header, stand before the member they belong to.
            b'L' | b'x' if member.size <= 1 << 20 => {
                let mut content = vec![0; usize::try_from(padded).map_err(io::Error::other)?];
                stream.read_exact(&mut content)?;
                content.truncate(usize::try_from(member.size).map_err(io::Error::other)?);
                long_name = if member.kind == b'L' {
                    Some(content)
                } else {
                    pax_path(&content).or(long_name)
                };
                continue;
            }
            b'g' => {}
            b'5' => long_name = None,
            b'0' | 0 | b'7' | b'S' => {
                let name = long_name.take().unwrap_or(member.name);
                let name = String::from_utf8_lossy(&name)
                    .trim_end_matches('\0')
                    .to_owned();
                if !is_log_member(&name) {
                    let shown = crate::guest::GuestPath::new(&name).to_string();
                    return Ok(Archive::Other(format!(
                        "an archive that holds {}",
                        shown.trim_start_matches('/')
                    )));
                }
                logs += 1;
            }
            _ => return Ok(Archive::Other("an archive with links or devices".into())),
        }
        skip(stream, padded)?;
    }
    Ok(if logs > 0 {
        Archive::Logs(logs)
    } else {
        Archive::Other("an empty archive".into())
    })
}

struct Member {
    name: Vec<u8>,
    size: u64,
    kind: u8,
}

impl Member {
    fn parse(header: &[u8; 512]) -> Option<Self> {
        if header.get(257..262)? != b"ustar" {
            return None;
        }
        let text = |range: std::ops::Range<usize>| -> Option<Vec<u8>> {
            let field = header.get(range)?;
            Some(
                field
                    .iter()
                    .copied()
                    .take_while(|byte| *byte != 0)
                    .collect(),
            )
        };
        let digits = String::from_utf8(text(124..136)?).ok()?;
        let size = u64::from_str_radix(digits.trim(), 8).ok()?;
        let mut name = text(345..500)?;
        // GNU tar uses the place of the prefix for times when its magic is "ustar  ".
        if header.get(262)? == &b' ' {
            name.clear();
        }
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend(text(0..100)?);
        Some(Self {
            name,
            size,
            kind: *header.get(156)?,
        })
    }
}

/// `path=` of a pax extended header: lines of "LENGTH KEY=VALUE\n".
fn pax_path(content: &[u8]) -> Option<Vec<u8>> {
    let lines = content.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| line.splitn(2, |byte| *byte == b' ').nth(1))
        .find_map(|pair| {
            let value = pair.strip_prefix(b"path=")?;
            Some(value.to_vec())
        })
}

/// A log by its own name, or anything with a harmless name below a folder of logs.
fn is_log_member(name: &str) -> bool {
    let base = name.rsplit('/').next().unwrap_or_default();
    if base.is_empty() || names::looks_precious(base).is_some() {
        return false;
    }
    let stem = names::rotated(base).map_or_else(|| base.to_owned(), |rotated| rotated.stem);
    let in_folder = name
        .split('/')
        .rev()
        .skip(1)
        .any(|folder| folder == "log" || folder == "logs");
    let has_other_ending = [
        ".conf", ".yaml", ".yml", ".json", ".cfg", ".ini", ".sh", ".tar", ".tgz", ".zip",
    ]
    .iter()
    .any(|ending| stem.ends_with(ending));
    names::is_log(&stem) || (in_folder && !has_other_ending)
}

fn skip(stream: &mut dyn Read, mut bytes: u64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while bytes > 0 {
        let want = usize::try_from(bytes.min(CHUNK as u64)).map_err(io::Error::other)?;
        let part = chunk
            .get_mut(..want)
            .ok_or_else(|| io::Error::other("impossible size"))?;
        stream.read_exact(part)?;
        bytes -= want as u64;
    }
    Ok(())
}

/// The first `limit` bytes of a guest's file as a stream; keeps the tree's own error.
struct TreeReader<'a> {
    tree: &'a dyn Tree,
    path: &'a Path,
    offset: u64,
    limit: u64,
    buffer: Vec<u8>,
    at: usize,
    error: Option<TreeError>,
}

impl<'a> TreeReader<'a> {
    fn new(tree: &'a dyn Tree, path: &'a Path, limit: u64) -> Self {
        Self {
            tree,
            path,
            offset: 0,
            limit,
            buffer: Vec::new(),
            at: 0,
            error: None,
        }
    }
}

impl Read for TreeReader<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.buffer.len() {
            let want = self.limit.saturating_sub(self.offset).min(READ as u64);
            if want == 0 {
                return Ok(0);
            }
            let length = usize::try_from(want).map_err(io::Error::other)?;
            match self.tree.read_range(self.path, self.offset, length) {
                Ok(bytes) => self.buffer = bytes,
                Err(error) => {
                    let short = io::Error::other(error.to_string());
                    self.error = Some(error);
                    return Err(short);
                }
            }
            self.at = 0;
            self.offset = self.offset.saturating_add(self.buffer.len() as u64);
        }
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let length = rest.len().min(out.len());
        if let (Some(to), Some(from)) = (out.get_mut(..length), rest.get(..length)) {
            to.copy_from_slice(from);
        }
        self.at += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::FolderTree;

    /// Runs a real tool in `folder`.
    fn run(folder: &Path, line: &str) {
        let status = std::process::Command::new("sh")
            .args(["-ec", line])
            .current_dir(folder)
            .status()
            .unwrap();
        assert!(status.success(), "{line}");
    }

    fn archive(line: &str) -> Archive {
        let base = tempfile::tempdir().unwrap();
        run(base.path(), line);
        let size = std::fs::metadata(base.path().join("x.tar.gz"))
            .unwrap()
            .len();
        look_through(
            &FolderTree::open(base.path()).unwrap(),
            Path::new("/x.tar.gz"),
            size,
        )
        .unwrap()
    }

    #[test]
    fn an_archive_of_logs_made_by_tar() {
        let make = "mkdir -p var/log/app; for i in 1 2 3; do echo x > var/log/app/app.log.$i; \
            done; echo y > var/log/syslog;";
        assert_eq!(
            archive(&format!("{make} tar czf x.tar.gz var")),
            Archive::Logs(4)
        );
        assert_eq!(
            archive(&format!("{make} tar czf x.tar.gz --format=pax var")),
            Archive::Logs(4)
        );
        assert_eq!(
            archive(&format!("{make} tar czf x.tar.gz --format=ustar var")),
            Archive::Logs(4)
        );
        let long = format!(
            "mkdir -p var/log/{0}/{0}; echo > var/log/{0}/{0}/a.log; tar czf x.tar.gz var",
            "x".repeat(120)
        );
        assert_eq!(archive(&long), Archive::Logs(1));
    }

    #[test]
    fn an_archive_of_anything_else_is_named() {
        let mixed =
            "mkdir -p log etc; echo > log/a.log; echo > etc/passwd; tar czf x.tar.gz log etc";
        assert_eq!(
            archive(mixed),
            Archive::Other("an archive that holds etc/passwd".into())
        );
        for line in [
            "mkdir log; echo > log/mysql-bin.000001; tar czf x.tar.gz log",
            "mkdir log; echo > log/app.db; tar czf x.tar.gz log",
            "mkdir log; ln -s a log/b.log; tar czf x.tar.gz log",
            "mkdir log; tar czf x.tar.gz log",
            "echo hello | gzip > x.tar.gz",
            "mkdir log; head -c 100000 /dev/urandom > log/a.log; tar cz log | head -c 5000 > \
             x.tar.gz",
        ] {
            assert!(matches!(archive(line), Archive::Other(_)), "{line}");
        }
    }

    #[test]
    fn looks_into_gzip() {
        let base = tempfile::tempdir().unwrap();
        run(
            base.path(),
            "yes 'Feb 23 08:01:02 h x: y' | head -n 200000 | gzip > log.gz; head -c 2000 log.gz > \
             cut.gz",
        );
        run(
            base.path(),
            "printf 'SQLite format 3\\0aaaaaaaaaaaaaaa' | gzip > db.gz; printf '' | gzip > \
             empty.gz",
        );
        run(base.path(), "printf '\\037\\213\\010garbage' > bad.gz");
        let tree = FolderTree::open(base.path()).unwrap();
        let look = |name: &str| peek_gzip(&tree, Path::new(name)).unwrap();
        assert_eq!(look("/log.gz"), Kind::Log);
        assert_eq!(look("/cut.gz"), Kind::Log);
        assert_eq!(look("/db.gz"), Kind::Database("SQLite"));
        assert_eq!(look("/empty.gz"), Kind::Empty);
        assert_eq!(look("/bad.gz"), Kind::Unknown);
    }
}
