//! Three repairs made on a helper, taken back by the ISO: the newest unattended, the oldest by its
//! name, the last from the menu.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use tests::qemu::{BOOT, Machine};
use tests::rescue_faulty;
use tests::snapshot::{State, snapshot};

use crate::{ANSWER, Disk, Rack, control_plane, rescue};

pub struct Node {
    disk: Disk,
    name: String,
    /// Identifiers of the runs, oldest first.
    runs: Vec<String>,
    before: BTreeMap<PathBuf, State>,
}

impl Node {
    pub fn prepare(folder: &Path, rack: &mut Rack) -> Result<Self> {
        let disk = control_plane(&folder.join("taken-back.img"))?;
        let before = disk.mounted_read_only(snapshot)?;
        let mut runs = Vec::new();
        for check in ["kubelet-bootstrap", "certificates", "admin-kubeconfig"] {
            let repaired = rescue_faulty(0, ["repair", "--yes", "--json", "--only", check])
                .arg(&disk.path)
                .ok()?;
            let run = repaired.json()?["receipt"]["runs"][0]["run"]
                .as_str()
                .map(str::to_owned);
            runs.push(run.with_context(|| repaired.transcript())?);
        }
        let name = rack.add(&disk.path);
        Ok(Self {
            disk,
            name,
            runs,
            before,
        })
    }

    /// By `rescue.auto=undo`.
    pub fn unattended(&self, machine: &mut Machine) -> Result<()> {
        let said = machine.expect("rescue: exit ", ANSWER)?;
        // The encrypted disks are nobody's to ask for, and stop nothing.
        ensure!(
            said.contains(&self.runs[2]) && !said.contains("Passphrase of"),
            "{said}"
        );
        machine.expect("0\n", ANSWER)?;
        machine.expect("This is a shell.", ANSWER).map(drop)
    }

    /// By command, then from the menu, which looks at all disks first; then the machine goes off.
    pub fn in_the_menu(&self, machine: &mut Machine, passphrase: &str) -> Result<()> {
        let (first, second) = (&self.runs[0], &self.runs[1]);
        let said = rescue(
            machine,
            &format!("rescue undo --yes --run {first} {}", self.name),
            0,
        )?;
        ensure!(said.contains(first.as_str()), "{said}");
        machine.send("exit\r")?;
        self.unlock(machine, passphrase)?;
        machine.expect("rescue> ", BOOT)?;
        machine.send("undo\r")?;
        self.unlock(machine, passphrase)?;
        machine.expect(
            "Take back the newest repair of k8s-master01? Type yes to go on: ",
            ANSWER,
        )?;
        machine.send("yes\r")?;
        let said = machine.expect("rescue> ", ANSWER)?;
        ensure!(said.contains(second.as_str()), "{said}");
        machine.send("off\r")
    }

    /// The question for the first encrypted volume; the second one has the same passphrase.
    fn unlock(&self, machine: &mut Machine, passphrase: &str) -> Result<()> {
        machine.expect("alone stops): ", BOOT)?;
        machine.send(&format!("{passphrase}\r"))
    }

    pub fn judge(&self) -> Result<()> {
        self.disk.assert_clean()?;
        let after = self.disk.mounted_read_only(snapshot)?;
        for (path, state) in &self.before {
            ensure!(
                after.get(path) == Some(state),
                "{} is not what it was",
                path.display()
            );
        }
        let new: Vec<&PathBuf> = after
            .keys()
            .filter(|path| !self.before.contains_key(*path))
            .collect();
        ensure!(new.is_empty(), "left behind: {new:?}");
        Ok(())
    }
}
