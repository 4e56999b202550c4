//! The files that an image names: found beside it, checked, opened for reading.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::base::escaping::escape;
use crate::base::refusal::Refusal;
use crate::disk::given::Given;
use crate::disk::source::FileBytes;
use crate::disk::{ReadAt, shown};

/// So many files may lie behind one image. QEMU sets no bound; libvirt's is 200, and people's
/// chains are shorter than ten.
pub(super) const MAX_FILES: usize = 256;

/// Opens the files behind one image, in the folders that are allowed.
#[derive(Debug)]
pub(super) struct Files {
    /// As the user named it.
    image: PathBuf,
    allowed: Vec<PathBuf>,
    seen: BTreeSet<(u64, u64)>,
}

/// One of them.
pub(super) struct Found {
    /// Its path, links resolved.
    pub path: PathBuf,
    pub bytes: Arc<dyn ReadAt>,
}

impl Files {
    /// For the image at `path`: its own folder, and those that the user gave.
    pub fn of(path: &Path, given: &Given) -> Result<Self> {
        let image = path
            .canonicalize()
            .with_context(|| format!("looking for {}", shown(path)))?;
        let own = image
            .parent()
            .context("an image without a folder")?
            .to_path_buf();
        let mut allowed = vec![own];
        for folder in &given.folders {
            let folder = folder
                .canonicalize()
                .with_context(|| format!("looking for {}", shown(folder)))?;
            allowed.push(folder);
        }
        let mut files = Self {
            image,
            allowed,
            seen: BTreeSet::new(),
        };
        let image = files.image.clone();
        files.note(&image)?;
        Ok(files)
    }

    /// Opens the file that `by` calls `name`, relative to the folder of `by`.
    ///
    /// # Errors
    /// A [`Refusal`] when it is not there, no plain file, outside of the folders allowed, or was
    /// opened before.
    pub fn open(&mut self, by: &Path, name: &str) -> Result<Found> {
        self.open_once_or(by, name, false)
    }

    /// As [`Files::open`], for a part of a list, which names nothing itself: several parts may lie
    /// in one file, but not in the image.
    pub fn open_part(&mut self, by: &Path, name: &str) -> Result<Found> {
        self.open_once_or(by, name, true)
    }

    fn open_once_or(&mut self, by: &Path, name: &str, may_be_known: bool) -> Result<Found> {
        let said = || format!("{} reads from {:?}", shown(by), escape(name));
        // QEMU's own way of naming other things: `json:{…}`, `nbd://…`, `rbd:pool/image`. A slash
        // before the colon makes it a path.
        let is_protocol = name
            .split_once(':')
            .is_some_and(|(before, _)| !before.contains('/'));
        let name = if is_protocol {
            name.strip_prefix("file:").unwrap_or(name)
        } else {
            name
        };
        if is_protocol && (name.contains(':') || name.starts_with("//")) {
            return Err(Refusal::new(
                said(),
                "only plain files are opened for an image, no network and no other driver",
                format!(
                    "qemu-img convert -O raw {0} {0}.raw, then rescue inspect {0}.raw",
                    shown(&self.image)
                ),
            )
            .into());
        }
        let wanted = by.parent().unwrap_or(Path::new("/")).join(name);
        let path = wanted.canonicalize().map_err(|error| {
            let (wanted, folder) = (
                shown(&wanted),
                wanted.parent().map(shown).unwrap_or_default(),
            );
            anyhow::Error::from(Refusal::new(
                format!("{}, and {wanted} cannot be found ({error})", said()),
                "a part of the disk is missing",
                format!("copy it to {folder} as well, then run this again"),
            ))
        })?;
        if !self.allowed.iter().any(|folder| path.starts_with(folder)) {
            let folder = path.parent().unwrap_or(Path::new("/"));
            return Err(Refusal::new(
                format!(
                    "{}, which is {}, outside of its own folder",
                    said(),
                    shown(&path)
                ),
                "an image can name any file of this machine, also one that is nobody else's \
                 business; such files are only opened when allowed",
                format!(
                    "if this is right: the same command with --image-folder {}",
                    crate::base::shell::quoted(folder)
                ),
            )
            .into());
        }
        if !(may_be_known && self.is_known_part(&path)) {
            self.note(&path)?;
        }
        let bytes = FileBytes::open(&path)
            .with_context(|| format!("opening {} for {}", shown(&path), shown(by)))?;
        Ok(Found {
            path,
            bytes: Arc::new(bytes),
        })
    }

    /// Opened before, and not the image itself.
    fn is_known_part(&self, path: &Path) -> bool {
        let identity = |path: &Path| {
            std::fs::metadata(path)
                .map(|metadata| (metadata.dev(), metadata.ino()))
                .ok()
        };
        let part = identity(path);
        part != identity(&self.image) && part.is_some_and(|part| self.seen.contains(&part))
    }

    /// Nothing is opened twice: a chain that bites its own tail would never end.
    fn note(&mut self, path: &Path) -> Result<()> {
        let metadata =
            std::fs::metadata(path).with_context(|| format!("looking at {}", shown(path)))?;
        let refuse = |what: &str| {
            let next = format!(
                "look at it with `qemu-img info --backing-chain -U {}`",
                shown(&self.image)
            );
            Err(Refusal::new(
                format!("{} {what}", shown(&self.image)),
                "the disk cannot be put together",
                next,
            )
            .into())
        };
        if !metadata.is_file() {
            return refuse(&format!(
                "reads from {}, which is not a plain file",
                shown(path)
            ));
        }
        if self.seen.len() > MAX_FILES {
            return refuse(&format!("reads from more than {MAX_FILES} files"));
        }
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return refuse(&format!(
                "reads from {} twice: it goes round in a circle",
                shown(path)
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(files: &mut Files, by: &Path, name: &str) -> String {
        files.open(by, name).map(drop).unwrap_err().to_string()
    }

    #[test]
    fn only_files_of_the_folders_allowed_are_opened() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().canonicalize().unwrap().join("own");
        let other = own.with_file_name("other");
        for path in [own.join("sub"), other.clone()] {
            std::fs::create_dir_all(path).unwrap();
        }
        let image = own.join("top");
        for path in [
            image.clone(),
            own.join("base"),
            own.join("sub/base"),
            other.join("secret"),
            own.join("a:b"),
        ] {
            std::fs::write(path, "x").unwrap();
        }
        std::os::unix::fs::symlink(other.join("secret"), own.join("link")).unwrap();
        let mut files = Files::of(&image, &Given::default()).unwrap();
        for name in ["base", "sub/base", "./a:b"] {
            files.open(&image, name).unwrap();
        }
        for name in [
            "../other/secret",
            "link",
            other.join("secret").to_str().unwrap(),
        ] {
            let text = refusal(&mut files, &image, name);
            assert!(
                text.contains("--image-folder") && text.contains("outside"),
                "{text}"
            );
        }
        for name in [
            "nbd://host/x",
            "json:{\"driver\":\"file\"}",
            "rbd:pool/x",
            "file://host/x",
        ] {
            assert!(
                refusal(&mut files, &image, name).contains("only plain files"),
                "{name}"
            );
        }
        assert!(refusal(&mut files, &image, "missing").contains("a part of the disk is missing"));
        assert!(refusal(&mut files, &image, "base").contains("circle"));
        assert!(refusal(&mut files, &image, "top").contains("circle"));
        files.open_part(&image, "./base").unwrap();
        assert!(
            files
                .open_part(&image, "top")
                .map(drop)
                .unwrap_err()
                .to_string()
                .contains("circle")
        );
        assert!(refusal(&mut files, &image, "sub").contains("not a plain file"));
        let given = Given {
            folders: vec![other.clone()],
            ..Given::default()
        };
        Files::of(&image, &given)
            .unwrap()
            .open(&image, "link")
            .unwrap();
    }
}
