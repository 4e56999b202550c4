//! The trimmed module set: what the list names, closed over dependencies and soft dependencies.
//!
//! Modules are unpacked (`.ko.xz` to `.ko`) so that the initramfs compresses as one, and are never
//! stripped: the signature that Secure Boot wants is appended to the file.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::kernel::Kernel;

/// depmod's indexes that our own modprobe reads.
pub const INDEXES: &[&str] = &[
    "modules.alias",
    "modules.builtin",
    "modules.dep",
    "modules.softdep",
];

/// A staged module set.
#[derive(Debug)]
pub struct Modules {
    /// `lib/modules/RELEASE` of the staged set.
    pub folder: PathBuf,
    /// How many modules.
    pub count: usize,
    /// Their size together, unpacked.
    pub bytes: u64,
}

/// What depmod knows about one kernel's modules. Names have `_` for `-`, as the kernel's own.
#[derive(Debug, Default)]
struct Index {
    /// Name to (path under the modules folder, direct and indirect dependencies by path).
    modules: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
    /// Name to what its soft dependencies say, which are names or aliases.
    soft: BTreeMap<String, Vec<String>>,
    /// Aliases without wildcards: a soft dependency may be one.
    aliases: BTreeMap<String, Vec<String>>,
}

/// Selects, unpacks and indexes the modules of `list` under `work`.
pub fn select(kernel: &Kernel, list: &str, work: &Path) -> Result<Modules> {
    let source = kernel.modules_under(&kernel.root);
    let index = Index::read(&source)?;
    let paths = index.closure(&parse_list(list))?;

    let stage = work.join("modules");
    let folder = kernel.modules_under(&stage);
    let mut bytes = 0;
    for path in &paths {
        bytes += stage_module(&source.join(path), &folder.join(path))?;
    }
    // depmod wants these to order aliases and to know what is built in.
    for name in [
        "modules.builtin",
        "modules.builtin.modinfo",
        "modules.order",
    ] {
        fs::copy(source.join(name), folder.join(name))
            .with_context(|| format!("copying {name}"))?;
    }
    command::run(
        Command::new("depmod")
            .arg("-b")
            .arg(&stage)
            .arg(&kernel.release),
    )
    .context("indexing the chosen modules")?;
    Ok(Modules {
        folder,
        count: paths.len(),
        bytes,
    })
}

/// Copies one module, unpacked; gives its size.
fn stage_module(source: &Path, target: &Path) -> Result<u64> {
    if let Some(folder) = target.parent() {
        fs::create_dir_all(folder)?;
    }
    let (target, content) = match source.extension().and_then(|e| e.to_str()) {
        Some("xz") => (
            target.with_extension(""),
            command::output(Command::new("xz").arg("-dc").arg(source))?,
        ),
        _ => (
            target.to_owned(),
            fs::read(source).with_context(|| format!("reading {}", source.display()))?,
        ),
    };
    // Debian's modules are signed; an unsigned one would only be found out on a machine with Secure
    // Boot.
    if !content.ends_with(b"~Module signature appended~\n") {
        bail!("{} carries no signature", source.display());
    }
    fs::write(&target, &content).with_context(|| format!("writing {}", target.display()))?;
    Ok(content.len() as u64)
}

/// One name a line, `#` starts a comment.
fn parse_list(text: &str) -> Vec<String> {
    text.lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim())
        .filter(|l| !l.is_empty())
        .map(canonical)
        .collect()
}

/// The kernel's own spelling.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// `kernel/drivers/scsi/sd_mod.ko.xz` is `sd_mod`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split(".ko").next().unwrap_or(file))
}

impl Index {
    fn read(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            fs::read_to_string(folder.join(name)).with_context(|| format!("reading {name}"))
        };
        Ok(Self::parse(
            &read("modules.dep")?,
            &read("modules.builtin")?,
            &read("modules.softdep")?,
            &read("modules.alias")?,
        ))
    }

    fn parse(dep: &str, builtin: &str, softdep: &str, alias: &str) -> Self {
        let mut index = Self {
            builtin: builtin.lines().map(name_of).collect(),
            ..Self::default()
        };
        for line in dep.lines() {
            if let Some((path, dependencies)) = line.split_once(':') {
                let dependencies = dependencies.split_whitespace().map(str::to_owned).collect();
                index
                    .modules
                    .insert(name_of(path), (path.to_owned(), dependencies));
            }
        }
        for line in softdep.lines() {
            // softdep ext4 pre: crypto-crc32c post: other
            let mut words = line.split_whitespace();
            if let (Some("softdep"), Some(name)) = (words.next(), words.next()) {
                let wanted = words
                    .filter(|w| !matches!(*w, "pre:" | "post:"))
                    .map(canonical);
                index
                    .soft
                    .entry(canonical(name))
                    .or_default()
                    .extend(wanted);
            }
        }
        for line in alias.lines() {
            let mut words = line.split_whitespace();
            if let (Some("alias"), Some(pattern), Some(name)) =
                (words.next(), words.next(), words.next())
                && !pattern.contains(['*', '?', '['])
            {
                index
                    .aliases
                    .entry(canonical(pattern))
                    .or_default()
                    .push(canonical(name));
            }
        }
        index
    }

    /// Paths of the named modules and of all they need.
    fn closure(&self, names: &[String]) -> Result<BTreeSet<String>> {
        let unknown: Vec<&str> = names
            .iter()
            .filter(|n| !self.knows(n))
            .map(String::as_str)
            .collect();
        if !unknown.is_empty() {
            bail!(
                "image/modules.list names modules that this kernel does not have: {}",
                unknown.join(", ")
            );
        }
        let mut paths = BTreeSet::new();
        let mut queue: VecDeque<String> = names.iter().cloned().collect();
        while let Some(name) = queue.pop_front() {
            let Some((path, dependencies)) = self.modules.get(&name) else {
                continue;
            };
            if !paths.insert(path.clone()) {
                continue;
            }
            queue.extend(dependencies.iter().map(|path| name_of(path)));
            for wanted in self.soft.get(&name).into_iter().flatten() {
                match self.aliases.get(wanted) {
                    Some(modules) => queue.extend(modules.iter().cloned()),
                    None => queue.push_back(wanted.clone()),
                }
            }
        }
        Ok(paths)
    }

    fn knows(&self, name: &str) -> bool {
        self.modules.contains_key(name) || self.builtin.contains(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEP: &str = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz \
        kernel/lib/crc16.ko.xz\n\
        kernel/fs/jbd2/jbd2.ko.xz:\nkernel/lib/crc16.ko.xz:\nkernel/crypto/crc32c_generic.ko.xz:\n\
        kernel/arch/x86/crypto/crc32c-intel.ko.xz:\nkernel/drivers/net/e1000.ko.xz:\n";
    const SOFT: &str = "# Soft dependencies\nsoftdep ext4 pre: crypto-crc32c\n";
    const ALIAS: &str = "alias crypto-crc32c crc32c_intel\nalias crypto-crc32c crc32c_generic\n\
        alias pci:v*bc01* other\n";

    fn index() -> Index {
        Index::parse(DEP, "kernel/fs/fuse/fuse.ko\n", SOFT, ALIAS)
    }

    #[test]
    fn closes_over_dependencies_and_soft_dependencies() {
        let paths = index().closure(&["ext4".into(), "fuse".into()]).unwrap();
        let names: Vec<String> = paths.iter().map(|p| name_of(p)).collect();
        assert_eq!(
            names,
            ["crc32c_intel", "crc32c_generic", "ext4", "jbd2", "crc16"]
        );
    }

    #[test]
    fn names_what_the_kernel_does_not_have() {
        let error = index()
            .closure(&["ext4".into(), "ext5".into()])
            .unwrap_err()
            .to_string();
        assert!(error.contains("ext5") && !error.contains("ext4"), "{error}");
    }

    #[test]
    fn reads_the_list_with_comments() {
        assert_eq!(
            parse_list("# group\nsd_mod\n\nhid-generic # why\n"),
            ["sd_mod", "hid_generic"]
        );
    }
}
