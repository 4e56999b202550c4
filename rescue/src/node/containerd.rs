//! containerd's configuration: the file that its unit names, and the files that this one imports.

use std::collections::BTreeSet;

use crate::base::toml::{Spanned, Toml};
use crate::guest::{Guest, GuestPath};
use crate::systemd::{Unit, glob};

/// Where containerd looks without `--config`.
const DEFAULT: &str = "/etc/containerd/config.toml";

/// More imports than any node has.
const MAX_FILES: usize = 100;

/// Names of the plugins that answer the kubelet: of version 1, of versions 2 and 3, and of
/// containerd 2.0.
const CRI: [&str; 4] = [
    "cri",
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
];

/// One file of the configuration.
#[derive(Debug)]
pub struct ContainerdFile {
    /// Where it is.
    pub path: GuestPath,
    /// What is in it, or why containerd cannot read it.
    pub toml: Result<Toml, String>,
}

impl ContainerdFile {
    /// The elements of `disabled_plugins` that switch the kubelet's plugin off.
    pub fn disabled_cri(&self) -> Vec<Spanned> {
        let Ok(toml) = &self.toml else {
            return Vec::new();
        };
        let mut disabled = toml.texts(&["disabled_plugins"]);
        disabled.retain(|plugin| CRI.contains(&plugin.value.as_str()));
        disabled
    }
}

/// The files of the configuration, the first one first. containerd joins the lists of all of them
/// (mergeConfig in cmd/containerd/server/config/config.go). Empty where there is no file: then
/// every default holds.
pub fn containerd_files(guest: &Guest) -> Vec<ContainerdFile> {
    let mut waiting = vec![config_path(guest)];
    let mut seen = BTreeSet::new();
    let mut files = Vec::new();
    while let Some(path) = waiting.pop() {
        let Ok(real) = guest.resolve(&path) else {
            continue;
        };
        if !seen.insert(real) || files.len() >= MAX_FILES {
            continue;
        }
        let bytes = guest.read(&path).map_err(|error| error.to_string());
        let toml = bytes.and_then(|bytes| Toml::parse(&bytes).map_err(|why| format!("{why:#}")));
        if let Ok(toml) = &toml {
            let imports = toml.texts(&["imports"]).into_iter().rev();
            waiting.extend(imports.flat_map(|import| imported(guest, &path, &import.value)));
        }
        files.push(ContainerdFile { path, toml });
    }
    files
}

/// `--config` or `-c` of the unit.
fn config_path(guest: &Guest) -> GuestPath {
    let unit = Unit::load(guest, "containerd.service");
    let argv = unit.map(|unit| unit.argv()).unwrap_or_default();
    let value = argv.iter().enumerate().find_map(|(index, word)| {
        let joined = ["--config=", "-config=", "-c="];
        let joined = joined.iter().find_map(|flag| word.strip_prefix(flag));
        let is_flag = matches!(word.as_str(), "--config" | "-config" | "-c");
        joined.or_else(|| argv.get(index + 1).filter(|_| is_flag).map(String::as_str))
    });
    let value = value.filter(|value| value.starts_with('/'));
    GuestPath::new(value.unwrap_or(DEFAULT))
}

/// A pattern of `imports`, relative to the folder of the file that has it.
fn imported(guest: &Guest, file: &GuestPath, pattern: &str) -> Vec<GuestPath> {
    let pattern = file.parent().as_path().join(pattern);
    let mut paths = glob::matches(guest, &pattern.to_string_lossy());
    paths.reverse();
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::MemoryTree;

    fn disabled(tree: MemoryTree) -> Vec<String> {
        let files = containerd_files(&tree.into_guest());
        let in_file = |file: &ContainerdFile| {
            let path = file.path.clone();
            let lines = file.disabled_cri().into_iter();
            let lines: Vec<String> = lines.map(|it| format!("{path}:{}", it.line)).collect();
            lines
        };
        files.iter().flat_map(in_file).collect()
    }

    #[test]
    fn the_units_file_and_its_imports_are_read() {
        let unit = "[Service]\nExecStart=/usr/bin/containerd --config /opt/c.toml\n";
        let tree = MemoryTree::new()
            .file("/usr/lib/systemd/system/containerd.service", unit)
            .file(
                "/opt/c.toml",
                "version = 2\nimports = [\"conf.d/*.toml\", \"/opt/c.toml\"]\n",
            )
            .file(
                "/opt/conf.d/a.toml",
                "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n",
            )
            .file(
                "/etc/containerd/config.toml",
                "disabled_plugins = [\"cri\"]\n",
            );
        assert_eq!(disabled(tree), ["/opt/conf.d/a.toml:1"]);
    }

    #[test]
    fn without_a_file_nothing_is_disabled() {
        assert!(disabled(MemoryTree::new()).is_empty());
        let other = "disabled_plugins = [\"restart\"]\n";
        assert!(disabled(MemoryTree::new().file(DEFAULT, other)).is_empty());
        assert_eq!(
            disabled(MemoryTree::new().file(DEFAULT, "disabled_plugins = ['cri']\n")),
            ["/etc/containerd/config.toml:1"]
        );
    }
}
