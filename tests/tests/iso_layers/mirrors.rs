//! Mirrors made by mdadm and filled by the kernel's md, with every version of its superblock; read
//! here through one leg. A node on a mirror is refused on its legs, and repaired as the refusal
//! says.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rescue::base::refusal::Refusal;
use rescue::disk::Source;
use rescue::guest::{GuestPath, discover};
use rescue::repair::write_mount::WritableGuest;
use tests::Cmd;
use tests::disk::MIB;
use tests::qemu::Machine;

use crate::{ANSWER, Disk, REPAIR, Rack, assert_repaired, control_plane, rescue};

const VERSIONS: [&str; 4] = ["0.90", "1.0", "1.1", "1.2"];
/// The version of which one leg falls out of its array.
const FELL_OUT: &str = "1.2";
/// Where an array of RAID5 has its disks among the legs.
const RAID5: std::ops::Range<usize> = 8..11;

pub struct Mirrors {
    folder: PathBuf,
    /// A node's file system on a mirror whose superblocks lie behind it.
    node: Disk,
    node_legs: [String; 2],
    /// What the other mirrors are filled with.
    content: String,
    /// Two for each version, three for RAID5.
    legs: Vec<String>,
}

/// An ext4 of 6 MiB that counts as a root.
fn small_root(image: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tree = folder.path();
    fs::create_dir_all(tree.join("etc"))?;
    fs::create_dir_all(tree.join("usr/bin"))?;
    symlink("usr/bin", tree.join("bin"))?;
    fs::write(tree.join("etc/hostname"), "mirrored")?;
    fs::write(tree.join("etc/fstab"), "/dev/md7 / ext4 defaults 0 1\n")?;
    File::create(image)?.set_len(6 * MIB)?;
    Cmd::new("mkfs.ext4")
        .args(["-q", "-F", "-O", "^has_journal", "-d"])
        .arg(tree)
        .arg(image)
        .ok()?;
    Ok(())
}

fn leg(folder: &Path, number: usize) -> PathBuf {
    folder.join(format!("leg{number:02}.img"))
}

fn mdadm(machine: &mut Machine, words: &str) -> Result<String> {
    let said = machine.shell(&format!("mdadm {words} && echo done-$((6*7))"), ANSWER)?;
    ensure!(said.contains("done-42"), "{said}");
    Ok(said)
}

impl Mirrors {
    pub fn prepare(folder: &Path, rack: &mut Rack) -> Result<Self> {
        let node = control_plane(&folder.join("node-leg0.img"))?;
        // Room for the superblock, behind the file system.
        let file = File::options().write(true).open(&node.path)?;
        file.set_len(file.metadata()?.len() + MIB)?;
        let other = node.copy_to(&folder.join("node-leg1.img"))?;
        let node_legs = [&node, &other].map(|disk| rack.add(&disk.path));

        let content = folder.join("content.img");
        small_root(&content)?;
        let content = rack.add(&content);
        let mut legs = Vec::new();
        for number in 0..RAID5.end {
            let path = leg(folder, number);
            File::create(&path)?.set_len(12 * MIB)?;
            legs.push(rack.add(&path));
        }
        Ok(Self {
            folder: folder.to_owned(),
            node,
            node_legs,
            content,
            legs,
        })
    }

    pub fn work(&self, machine: &mut Machine) -> Result<()> {
        self.repair_the_node(machine)?;
        for (number, version) in VERSIONS.iter().enumerate() {
            let (first, second) = (&self.legs[2 * number], &self.legs[2 * number + 1]);
            let create = "--create /dev/md7 --run --assume-clean --level=1 --raid-devices=2";
            mdadm(
                machine,
                &format!("{create} --metadata={version} {first} {second}"),
            )?;
            let said = machine.shell(
                &format!(
                    "dd if={} of=/dev/md7 bs=1M; sync; echo filled $?",
                    self.content
                ),
                ANSWER,
            )?;
            ensure!(said.contains("\nfilled 0\n"), "{said}");
            if *version == FELL_OUT {
                // The array goes on without it, and changes.
                mdadm(
                    machine,
                    &format!("/dev/md7 --fail {second} --remove {second}"),
                )?;
                machine.shell(
                    "dd if=/dev/zero of=/dev/md7 bs=1M seek=7 count=1; sync",
                    ANSWER,
                )?;
            }
            mdadm(machine, "--stop /dev/md7")?;
        }
        // The ISO has no driver for it, but mdadm has written its superblocks.
        let disks = self.legs.get(RAID5).context("too few legs")?.join(" ");
        let create = "mdadm --create /dev/md7 --run --assume-clean --level=5 --raid-devices=3";
        machine
            .shell(&format!("{create} {disks}; mdadm --stop /dev/md7"), ANSWER)
            .map(drop)
    }

    /// Refused on its legs, then as the refusal says.
    fn repair_the_node(&self, machine: &mut Machine) -> Result<()> {
        let [first, second] = &self.node_legs;
        let create =
            "--create /dev/md7 --run --assume-clean --level=1 --metadata=1.0 --raid-devices=2";
        // Made by the node itself, elsewhere.
        mdadm(
            machine,
            &format!("{create} --homehost=k8s-master01 {first} {second}"),
        )?;
        mdadm(machine, "--stop /dev/md7")?;
        let said = rescue(machine, &format!("{REPAIR} {first} {second}"), 3)?;
        ensure!(
            said.contains("mdadm --assemble --scan") && said.contains("rescue repair /dev/md127"),
            "{said}"
        );
        mdadm(machine, "--assemble --scan")?;
        let said = rescue(machine, &format!("{REPAIR} /dev/md127"), 0)?;
        ensure!(said.contains("Repaired k8s-master01"), "{said}");
        mdadm(machine, "--stop /dev/md127").map(drop)
    }

    pub fn judge(&self) -> Result<()> {
        for number in 0..2 {
            let path = self.folder.join(format!("node-leg{number}.img"));
            assert_repaired(&Disk {
                path,
                ..self.node.clone()
            })?;
        }
        for (number, version) in VERSIONS.iter().enumerate() {
            let (first, second) = (2 * number, 2 * number + 1);
            let alone = "a mirror of 2 disks, of which 1 were given";
            self.is_read(version, &[first], Some(alone))?;
            if *version == FELL_OUT {
                self.is_read(version, &[first, second], Some("an older leg of a mirror"))?;
            } else {
                self.is_read(version, &[second], Some(alone))?;
                self.is_read(version, &[first, second], None)?;
            }
        }
        self.others_are_named()
    }

    fn sources(&self, legs: &[usize]) -> Vec<Source> {
        legs.iter()
            .map(|number| Source::Disk(leg(&self.folder, *number)))
            .collect()
    }

    /// Every byte through these legs; what is said of them; and that nothing is written to them.
    fn is_read(&self, version: &str, legs: &[usize], note: Option<&str>) -> Result<()> {
        let found =
            discover(&self.sources(legs)).with_context(|| format!("{version}: {legs:?}"))?;
        let [guest] = found.guests.as_slice() else {
            anyhow::bail!("{version} {legs:?}: {found:?}")
        };
        ensure!(
            guest.read_text(&GuestPath::new("/etc/hostname"))? == "mirrored",
            "{version} {legs:?}"
        );
        let said: Vec<&str> = found
            .leftovers
            .iter()
            .map(|leftover| leftover.what.as_str())
            .collect();
        let as_expected = match note {
            Some(note) => said.len() == 1 && said[0].starts_with(note),
            None => said.is_empty(),
        };
        ensure!(as_expected, "{version} {legs:?}: {said:?}");
        let file_systems = guest.file_systems.clone();
        drop(found);
        let Err(error) = WritableGuest::open("the mirror", &file_systems) else {
            anyhow::bail!("{version} {legs:?}: written to through one leg")
        };
        let refusal = error.downcast::<Refusal>()?;
        ensure!(refusal.next.contains("mdadm --assemble"), "{refusal}");
        Ok(())
    }

    fn others_are_named(&self) -> Result<()> {
        let refused = |sources: &[Source]| -> Result<String> {
            let error = discover(sources)
                .err()
                .with_context(|| format!("{sources:?} was read"))?;
            Ok(error.downcast::<Refusal>()?.to_string())
        };
        let raid5: Vec<usize> = RAID5.collect();
        let refusal = refused(&self.sources(&raid5))?;
        ensure!(refusal.contains("RAID5 of 3 disks"), "{refusal}");
        // Two copies of one leg cannot be told apart.
        let copy = self.folder.join("copy.img");
        fs::copy(leg(&self.folder, 2), &copy)?;
        let refusal = refused(&[self.sources(&[2]), vec![Source::Disk(copy)]].concat())?;
        ensure!(refusal.contains("copies of one mirror"), "{refusal}");
        Ok(())
    }
}
