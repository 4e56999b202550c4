//! How a user would type a source again: every "Next:" line is to be copied as it stands.

use crate::base::shell::quoted;

use crate::disk::Backing;
use crate::disk::Source;
use crate::disk::given::Given;
use crate::guest::Guest;

/// A disk by its path, a folder with `--root`.
pub fn source(source: &Source) -> String {
    match source {
        Source::Disk(disk) => quoted(disk),
        Source::Root(folder) => format!("--root {}", quoted(folder)),
    }
}

/// All of them on one line, with what was said about their image files.
pub fn sources(sources: &[Source]) -> String {
    sources.iter().map(source).collect::<Vec<_>>().join(" ") + &Given::get().as_typed()
}

/// Disks to work on, and those that only lend their CA.
pub fn with_ca(disks: &[Source], ca: &[Source]) -> String {
    let lent = ca.iter().map(|one| {
        let (Source::Disk(at) | Source::Root(at)) = one;
        format!("--ca {}", quoted(at))
    });
    std::iter::once(sources(disks))
        .chain(lent)
        .collect::<Vec<_>>()
        .join(" ")
}

/// The disks that a guest was found on, root first.
pub fn guest(guest: &Guest) -> String {
    let mut words: Vec<String> = Vec::new();
    for file_system in &guest.file_systems {
        let named = match &file_system.backing {
            // What is mounted below the guest's folder comes with it.
            Backing::Folder(_) if !words.is_empty() => continue,
            Backing::Folder(folder) => vec![format!("--root {}", quoted(folder))],
            backing => backing
                .disks()
                .into_iter()
                .map(|(disk, _)| quoted(disk))
                .collect(),
        };
        for word in named {
            if !words.contains(&word) {
                words.push(word);
            }
        }
    }
    if words.is_empty() {
        "WORKER".to_owned()
    } else {
        words.join(" ") + &Given::get().as_typed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_quoted_for_the_shell() {
        let both = [
            Source::Disk("/tmp/a b.img".into()),
            Source::Root("/mnt".into()),
        ];
        assert_eq!(sources(&both), "'/tmp/a b.img' --root /mnt");
    }
}
