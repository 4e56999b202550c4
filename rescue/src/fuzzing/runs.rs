//! Records of earlier runs: a guest can hold any, and `repair` and `undo` act on them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::base::ui::Silent;
use crate::disk::Backing;
use crate::guest::{FileSystem, GuestPath};
use crate::repair::journal::{Journal, parse_journal};
use crate::repair::{WritableGuest, recover, undo};
use crate::tree::Usage;

/// A record: what is read can be written and read again, and its paths are paths or refused.
pub fn journal(data: &[u8]) {
    let journal = match parse_journal(data) {
        Ok(journal) => journal,
        Err(error) => return super::shown::text(&format!("{error:#}")),
    };
    for step in &journal.steps {
        super::shown::text(&step.path.to_string());
        super::shown::text(&step.before.to_string());
        for path in [&step.path, &step.mount_point] {
            match path.to_real() {
                Ok(path) => {
                    assert!(path.as_path().is_absolute() && !path.as_path().ends_with(".."))
                }
                Err(error) => super::shown::text(&format!("{error:#}")),
            }
        }
    }
    let written = serde_json::to_vec(&journal).expect("a record can be written");
    assert_eq!(
        parse_journal(&written).expect("what was written is read"),
        journal
    );
}

/// A guest with a crafted record: whatever it says, nothing outside the guest changes, nor a file
/// that it does not name.
pub fn hostile_runs(data: &[u8]) {
    let Some((flags, record)) = data.split_first() else {
        return;
    };
    let place = Sandbox::new();
    place.populate(*flags, record);
    let Ok(guest) = WritableGuest::open("fuzzed", &[place.file_system()]) else {
        return;
    };
    let errors = [
        recover(&guest, &Silent).err(),
        undo(&guest, Some(RUN), &Silent).err(),
        undo(&guest, None, &Silent).err(),
    ];
    for error in errors.into_iter().flatten() {
        super::shown::text(&format!("{error:#}").replace('\n', " "));
    }
    drop(guest);
    place.check(parse_journal(record).ok().as_ref());
}

const RUN: &str = "20261123-024149-a1b2";
const OUTSIDE: &str = "a file outside the guest";
const KEPT: &str = "a file that no record names";

struct Sandbox(PathBuf);

impl Sandbox {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let above = if memory.is_dir() {
            memory.to_path_buf()
        } else {
            std::env::temp_dir()
        };
        let place = Self(above.join(format!("rescue-fuzz-{}", std::process::id())));
        let _ = fs::remove_dir_all(&place.0);
        place
    }

    fn file_system(&self) -> FileSystem {
        FileSystem {
            mount_point: GuestPath::new("/"),
            kind: "folder".to_owned(),
            device: "fuzzed".to_owned(),
            uuid: None,
            subvolume: None,
            usage: Usage::default(),
            backing: Backing::Folder(self.0.join("guest")),
            has_errors: false,
        }
    }

    /// Links lead out of the guest wherever a record may point: by name, through a folder, in the
    /// stores.
    fn populate(&self, flags: u8, record: &[u8]) {
        let at = |path: &str| self.0.join(path);
        let run = format!("guest/var/lib/rescue/runs/{RUN}");
        let folders = ["outside/folder", "guest/etc/folder", "guest/.rescue"].map(at);
        for folder in folders
            .into_iter()
            .chain(["backup", "staged"].map(|name| at(&run).join(name)))
        {
            fs::create_dir_all(folder).expect("a folder can be made");
        }
        fs::write(at("outside/secret"), OUTSIDE).expect("a file can be written");
        fs::write(at("guest/etc/kept"), KEPT).expect("a file can be written");
        fs::write(at("guest/etc/old"), "new").expect("a file can be written");
        let _ = symlink(at("outside/secret"), at("guest/etc/link"));
        let _ = symlink(at("outside"), at("guest/etc/out"));
        for (bit, name) in [(1, "done.json"), (2, "undo.json"), (4, "undone.json")] {
            if flags & bit != 0 {
                let finished = br#"{"format":"rescue-run/1","finished":"2026-11-23T02:41:49Z"}"#;
                fs::write(at(&run).join(name), finished).expect("a file can be written");
            }
        }
        for (bit, name) in [(8, "backup"), (16, "staged")] {
            let folder = at(&run).join(name);
            if flags & bit != 0 {
                fs::write(folder.join("0"), "old").expect("a file can be written");
                let _ = symlink(at("outside/secret"), folder.join("1"));
                let _ = symlink(at("outside"), folder.join("2"));
            }
            if flags & (bit << 2) != 0 {
                let _ = fs::remove_dir_all(&folder);
                let _ = symlink(at("outside"), &folder);
            }
        }
        if flags & 128 != 0 {
            let _ = symlink(at("outside"), at("guest/.rescue").join(RUN));
        }
        fs::write(at(&run).join("journal.json"), record).expect("a file can be written");
    }

    fn check(&self, journal: Option<&Journal>) {
        let mut outside: Vec<_> = names(&self.0.join("outside"));
        outside.sort();
        assert_eq!(
            outside,
            ["folder", "secret"],
            "something outside the guest came or went"
        );
        let secret = fs::read_to_string(self.0.join("outside/secret"))
            .expect("the file outside the guest is there");
        assert_eq!(secret, OUTSIDE, "a file outside the guest changed");
        let named = journal.is_some_and(|journal| {
            journal
                .steps
                .iter()
                .any(|step| Path::new("/etc/kept").starts_with(step.path.as_path()))
        });
        if !named {
            let kept = fs::read_to_string(self.0.join("guest/etc/kept"))
                .expect("a file that nobody named is there");
            assert_eq!(kept, KEPT, "a file that nobody named changed");
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
