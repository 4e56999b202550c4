//! Debian's signed kernel: which package, downloading it, unpacking it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;

/// Packages that depend on the newest signed kernel, best first. The newer kernel reads newer file
/// systems: one older than the guest's mkfs can refuse to mount what it made. On Debian 13 the
/// second is a 6.12 as well.
const META_PACKAGES: &[&str] = &["linux-image-6.12-amd64", "linux-image-amd64"];

/// An unpacked kernel package.
#[derive(Debug)]
pub struct Kernel {
    /// `uname -r`: `6.12.117+deb12-amd64`.
    pub release: String,
    /// The signed image.
    pub image: PathBuf,
    /// Folder holding `lib/modules/RELEASE`, with depmod's indexes.
    pub root: PathBuf,
}

impl Kernel {
    /// `lib/modules/RELEASE` under a root.
    pub fn modules_under(&self, root: &Path) -> PathBuf {
        root.join("lib/modules").join(&self.release)
    }
}

/// Downloads the newest signed kernel into the cache, unless it is there, and gives the package
/// file.
pub fn download(cache: &Path) -> Result<PathBuf> {
    let (package, version) = newest()?;
    let name = file_name(&package, &version);
    let deb = cache.join(&name);
    if deb.exists() {
        return Ok(deb);
    }
    println!("downloading {package} {version}");
    // Into a folder of its own, so that an interrupted download never looks like a package.
    let folder = tempfile::Builder::new()
        .prefix("download-")
        .tempdir_in(cache)?;
    command::run(
        Command::new("apt-get")
            .args([
                "-q",
                "-o",
                "APT::Sandbox::User=root",
                "download",
                &format!("{package}={version}"),
            ])
            .current_dir(folder.path()),
    )
    .context("downloading the kernel (are the package lists fresh? Next: apt-get update)")?;
    fs::rename(folder.path().join(&name), &deb)
        .with_context(|| format!("apt-get did not leave {name}"))?;
    Ok(deb)
}

/// apt's name for the file: the epoch's colon is escaped.
fn file_name(package: &str, version: &str) -> String {
    format!("{package}_{}_amd64.deb", version.replace(':', "%3a"))
}

/// Name and version of the newest signed kernel that apt knows.
fn newest() -> Result<(String, String)> {
    for meta in META_PACKAGES {
        let Ok(record) =
            command::text(Command::new("apt-cache").args(["show", "--no-all-versions", meta]))
        else {
            continue;
        };
        if let Some(found) = signed_kernel(&record) {
            return Ok(found);
        }
    }
    bail!(
        "apt knows none of {}. Next: apt-get update",
        META_PACKAGES.join(", ")
    )
}

/// Picks `linux-image-6.12.117+deb12-amd64 (= 6.12.117-1~deb12u1)` out of a meta package's record.
fn signed_kernel(record: &str) -> Option<(String, String)> {
    let depends = record
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?;
    depends.split([',', '|']).find_map(|clause| {
        let (package, rest) = clause.trim().split_once(' ')?;
        let version = rest.trim().strip_prefix("(=")?.strip_suffix(')')?.trim();
        package
            .starts_with("linux-image-")
            .then(|| (package.to_owned(), version.to_owned()))
    })
}

/// Unpacks the package into the cache, once, with depmod's indexes beside the modules.
pub fn unpack(deb: &Path, cache: &Path) -> Result<Kernel> {
    let stem = deb
        .file_stem()
        .with_context(|| format!("{} is no package", deb.display()))?;
    let root = cache.join(stem);
    if !root.exists() {
        println!("unpacking   {}", stem.to_string_lossy());
        let folder = tempfile::Builder::new()
            .prefix("unpack-")
            .tempdir_in(cache)?;
        command::run(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(deb)
                .arg(folder.path()),
        )
        .with_context(|| format!("unpacking {}", deb.display()))?;
        command::run(
            Command::new("depmod")
                .arg("-b")
                .arg(folder.path())
                .arg(release(folder.path())?),
        )
        .context("indexing the kernel's modules")?;
        // Whole or not at all.
        fs::rename(folder.keep(), &root).with_context(|| format!("creating {}", root.display()))?;
    }
    let release = release(&root)?;
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    if !image.exists() {
        bail!("{} holds no {}", deb.display(), image.display());
    }
    Ok(Kernel {
        release,
        image,
        root,
    })
}

/// The one folder in `lib/modules`.
fn release(root: &Path) -> Result<String> {
    let folder = root.join("lib/modules");
    let mut names = fs::read_dir(&folder)
        .with_context(|| format!("reading {}: no kernel package?", folder.display()))?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<Vec<_>>>()?;
    match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(name),
        _ => bail!(
            "{} does not hold exactly one kernel's modules",
            folder.display()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_signed_kernel_in_a_meta_package() {
        let record = "Package: linux-image-6.12-amd64\nSource: linux-signed-6.12-amd64\n\
            Depends: linux-image-6.12.117+deb12-amd64 (= 6.12.117-1~deb12u1)\nDescription: Linux\n";
        assert_eq!(
            signed_kernel(record),
            Some((
                "linux-image-6.12.117+deb12-amd64".into(),
                "6.12.117-1~deb12u1".into()
            ))
        );
        assert_eq!(signed_kernel("Package: x\nDepends: libc6 (>= 2.3)\n"), None);
    }

    #[test]
    fn names_the_file_as_apt_does() {
        assert_eq!(
            file_name("linux-image-x", "1:2-3"),
            "linux-image-x_1%3a2-3_amd64.deb"
        );
    }
}
