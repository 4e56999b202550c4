//! Loads kernel modules by depmod's indexes: in dependency order, by name or by alias.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;

use super::pattern;

/// The modules of the running kernel. Names have `_` for `-`, as the kernel's own.
#[derive(Debug, Default)]
pub struct Modules {
    folder: PathBuf,
    /// Name to its file and the files it needs first, last one first, as in modules.dep.
    files: BTreeMap<String, (String, Vec<String>)>,
    builtin: BTreeSet<String>,
    /// Pattern and module, in the order of the index.
    aliases: Vec<(String, String)>,
    /// What to load before a module, by name or alias; failing to is no failure.
    soft: BTreeMap<String, Vec<String>>,
    /// Module parameters, from `module.parameter=value` on the kernel's command line.
    parameters: BTreeMap<String, Vec<String>>,
}

/// Parameters that we always give. Hosts scan their buses before loading ends, so that no disk
/// comes late.
const PARAMETERS: &[(&str, &str)] = &[("scsi_mod", "scan=sync")];

/// Modules already live do not come again.
const MAX_DEPTH: usize = 16;

impl Modules {
    /// Reads the indexes of the running kernel. A kernel without modules gives an empty set.
    pub fn open() -> Result<Self> {
        let release = rustix::system::uname()
            .release()
            .to_string_lossy()
            .into_owned();
        let folder = PathBuf::from("/lib/modules").join(release);
        let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let mut modules = Self::parse(
            &read("modules.dep"),
            &read("modules.builtin"),
            &read("modules.softdep"),
            &read("modules.alias"),
            &fs::read_to_string("/proc/cmdline").unwrap_or_default(),
        );
        modules.folder = folder;
        Ok(modules)
    }

    fn parse(dep: &str, builtin: &str, softdep: &str, alias: &str, command_line: &str) -> Self {
        let mut modules = Self {
            builtin: builtin.lines().map(name_of).collect(),
            ..Self::default()
        };
        for line in dep.lines() {
            if let Some((path, needs)) = line.split_once(':') {
                let needs = needs.split_whitespace().map(str::to_owned).collect();
                modules
                    .files
                    .insert(name_of(path), (path.to_owned(), needs));
            }
        }
        for line in alias.lines() {
            if let ["alias", pattern, name] = line.split_whitespace().collect::<Vec<_>>()[..] {
                modules.aliases.push((pattern.to_owned(), canonical(name)));
            }
        }
        for line in softdep.lines() {
            let mut words = line.split_whitespace();
            if let (Some("softdep"), Some(name)) = (words.next(), words.next()) {
                let before = words
                    .skip_while(|w| *w != "pre:")
                    .skip(1)
                    .take_while(|w| *w != "post:");
                modules
                    .soft
                    .entry(canonical(name))
                    .or_default()
                    .extend(before.map(str::to_owned));
            }
        }
        for (module, parameter) in PARAMETERS {
            modules
                .parameters
                .entry((*module).to_owned())
                .or_default()
                .push((*parameter).to_owned());
        }
        for word in command_line.split_whitespace() {
            if let Some((module, parameter)) = word.split_once('.')
                && parameter.contains('=')
            {
                modules
                    .parameters
                    .entry(canonical(module))
                    .or_default()
                    .push(parameter.to_owned());
            }
        }
        modules
    }

    /// The modules that a name or an alias (a device's modalias, `fs-xfs`, `crypto-crc32c`) stands
    /// for.
    pub fn resolve(&self, wanted: &str) -> Vec<String> {
        let name = canonical(wanted);
        if self.files.contains_key(&name) || self.builtin.contains(&name) {
            return vec![name];
        }
        let mut found: Vec<String> = Vec::new();
        for (pattern, module) in &self.aliases {
            if !found.contains(module) && pattern::matches(pattern, wanted) {
                found.push(module.clone());
            }
        }
        found
    }

    /// Loads a module and everything it needs. Gives whether it was not there before.
    pub fn load(&self, name: &str) -> Result<bool> {
        self.load_nested(&canonical(name), 0)
    }

    fn load_nested(&self, name: &str, depth: usize) -> Result<bool> {
        if self.builtin.contains(name) || is_live(name) {
            return Ok(false);
        }
        let Some((path, needs)) = self.files.get(name) else {
            bail!("no module {name}")
        };
        if depth > MAX_DEPTH {
            bail!("module {name}: soft dependencies go round in circles");
        }
        for need in needs
            .iter()
            .rev()
            .map(|need| name_of(need))
            .chain([name.to_owned()])
        {
            for soft in self
                .soft
                .get(&need)
                .into_iter()
                .flatten()
                .flat_map(|soft| self.resolve(soft))
            {
                // A soft dependency makes it better, not possible.
                let _ = self.load_nested(&soft, depth + 1);
            }
            if need != name && !is_live(&need) {
                let file = self
                    .files
                    .get(&need)
                    .map(|(file, _)| file)
                    .with_context(|| format!("no module {need}"))?;
                self.insert(&need, file)?;
            }
        }
        self.insert(name, path)
    }

    fn insert(&self, name: &str, file: &str) -> Result<bool> {
        let path = self.folder.join(file);
        let module =
            fs::File::open(&path).with_context(|| format!("opening module {}", path.display()))?;
        let parameters = self
            .parameters
            .get(name)
            .map(|all| all.join(" "))
            .unwrap_or_default();
        match rustix::system::finit_module(&module, &CString::new(parameters)?, 0) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => Ok(false),
            Err(error) => Err(error).with_context(|| format!("loading module {name}")),
        }
    }
}

fn is_live(name: &str) -> bool {
    fs::read_to_string(format!("/sys/module/{name}/initstate"))
        .is_ok_and(|state| state.trim() == "live")
}

/// The kernel's own spelling.
fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// `kernel/drivers/scsi/sd_mod.ko` is `sd_mod`.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    canonical(file.split(".ko").next().unwrap_or(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Modules {
        Modules::parse(
            "kernel/drivers/scsi/virtio_scsi.ko: kernel/drivers/scsi/scsi_mod.ko \
             kernel/drivers/scsi/scsi_common.ko\n\
             kernel/drivers/scsi/scsi_mod.ko: kernel/drivers/scsi/scsi_common.ko\n\
             kernel/drivers/scsi/scsi_common.ko:\n\
             kernel/fs/xfs/xfs.ko:\nkernel/crypto/crc32c_generic.ko:\n\
             kernel/arch/x86/crypto/crc32c-intel.ko:\n",
            "kernel/fs/fuse/fuse.ko\n",
            "softdep xfs pre: crypto-crc32c post: other\n",
            "alias fs-xfs xfs\nalias crypto-crc32c crc32c_intel\n\
             alias crypto-crc32c crc32c_generic\n\
             alias virtio:d00000008v* virtio_scsi\n",
            "BOOT_IMAGE=/boot/vmlinuz quiet rescue.auto=repair scsi_mod.max_luns=8 virtio-scsi.x=1",
        )
    }

    #[test]
    fn resolves_names_and_aliases() {
        let modules = sample();
        for (wanted, expected) in [
            ("crc32c-intel", vec!["crc32c_intel"]),
            ("fuse", vec!["fuse"]),
            ("fs-xfs", vec!["xfs"]),
            ("crypto-crc32c", vec!["crc32c_intel", "crc32c_generic"]),
            ("virtio:d00000008v00001AF4", vec!["virtio_scsi"]),
            ("fs-zfs", vec![]),
        ] {
            assert_eq!(modules.resolve(wanted), expected, "{wanted}");
        }
    }

    #[test]
    fn takes_parameters_from_the_command_line() {
        let modules = sample();
        assert_eq!(modules.parameters["scsi_mod"], ["scan=sync", "max_luns=8"]);
        assert_eq!(modules.parameters["virtio_scsi"], ["x=1"]);
    }

    #[test]
    fn keeps_only_what_comes_before_a_module() {
        assert_eq!(sample().soft["xfs"], ["crypto-crc32c"]);
    }
}
