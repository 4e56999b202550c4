//! The same disks read by guestfish: libguestfs boots a kernel of its own beside them, so that
//! nothing of what is compared here is ours.
//!
//! `RESCUE_GUESTFISH=1` asks for it: one appliance with all disks takes some minutes without KVM.
//! `RESCUE_GUESTFISH=NAME,NAME` takes only these layouts. docs/disks.md has the results.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rescue::disk::Source;
use rescue::guest::{Guest, GuestPath, discover};
use rescue::node::Node;
use rescue::tree::FileKind;
use sha2::Digest as _;
use tests::command::Cmd;
use tests::mounts::Loop;

use crate::layouts::{Layout, Mount};
use crate::machine::{Machine, Place};

/// What is compared, file by file.
const FOLDERS: [&str; 2] = ["/etc", "/var/lib/kubelet"];
/// What guestfish 1.48 in Debian 12 (Linux 6.1) does not read: its kernel follows no backup of a
/// GPT by itself, takes entries of 128 bytes only, and needs the protective MBR.
const NOT_READ: [&str; 4] = [
    "gpt_primary_header_gone",
    "gpt_primary_table_damaged_on_an_enlarged_disk",
    "gpt_without_protective_mbr",
    "gpt_with_entries_of_256_bytes",
];

/// Of these its own inspection is compared, too.
const INSPECTED: [&str; 4] = [
    "gpt_ext4",
    "mbr_xfs_with_boot",
    "btrfs_of_ubuntu",
    "lvm_on_mbr_as_centos_makes_it",
];

/// The logical volumes of the matrix, as its fstabs call them.
const LOGICAL: [&str; 2] = ["/dev/mapper/centos-root", "/dev/node/root"];

/// Hashes by path.
type Sums = BTreeMap<PathBuf, String>;

/// One machine of the matrix, as the appliance has it.
struct Guested {
    name: &'static str,
    layout: Layout,
    machine: Machine,
    /// The names of its disks.
    disks: Vec<String>,
}

pub fn compare(layouts: Vec<(&'static str, Layout)>) -> Result<()> {
    let folder = tempfile::Builder::new()
        .prefix("rescue-guestfish-")
        .tempdir()?;
    let folder = folder.path();
    let mut all = Vec::new();
    let asked = std::env::var("RESCUE_GUESTFISH").unwrap_or_default();
    let is_asked = |name: &str| asked == "1" || asked.split(',').any(|asked| asked == name);
    for (name, layout) in layouts.into_iter().filter(|(name, _)| is_asked(name)) {
        let own = folder.join(name);
        fs::create_dir(&own)?;
        let machine = Machine::make(&layout, &own).context(name)?;
        all.push(Guested {
            name,
            layout,
            machine,
            disks: Vec::new(),
        });
    }
    let said = appliance(&mut all, folder, |guested| guested.files_script(folder))?;
    let mut compared = 0;
    let mut wrong = Vec::new();
    for guested in &all {
        match guested.compare_files(folder) {
            Ok(None) if NOT_READ.contains(&guested.name) => {
                println!("{}: not read by guestfish", guested.name)
            }
            Ok(None) => wrong.push(format!("{}: guestfish read nothing", guested.name)),
            Ok(Some(count)) => {
                println!("{}: {count} files are the same", guested.name);
                compared += 1;
            }
            Err(error) => wrong.push(format!("{}: {error:#}", guested.name)),
        }
    }
    println!("{compared} of {} layouts are the same to both", all.len());
    ensure!(wrong.is_empty(), "{wrong:#?}\n{said}");

    // Its own inspection takes minutes for many disks.
    all.retain(|guested| INSPECTED.contains(&guested.name));
    let said = appliance(&mut all, folder, Guested::facts_script)?;
    for guested in &all {
        println!("{}: {}", guested.name, guested.compare_facts(&said)?);
    }
    Ok(())
}

/// One appliance with the disks of all; gives what it printed. `script` is asked once they have
/// their names.
fn appliance(
    all: &mut [Guested],
    folder: &Path,
    script: impl Fn(&Guested) -> Result<String>,
) -> Result<String> {
    let (mut lines, mut count) = (String::new(), 0);
    for guested in all.iter_mut() {
        guested.disks.clear();
        for image in &guested.machine.images {
            let blocks = if guested.sector() == 4096 {
                " blocksize:4096"
            } else {
                ""
            };
            lines.push_str(&format!(
                "add-drive {} readonly:true format:raw{blocks}\n",
                image.display()
            ));
            guested.disks.push(disk_name(count));
            count += 1;
        }
    }
    lines.push_str("run\n");
    let is_inspection = all.len() <= INSPECTED.len();
    lines.push_str(if is_inspection { "inspect-os\n" } else { "" });
    for guested in all.iter() {
        lines.push_str(&script(guested)?);
    }
    let ran = Cmd::new("guestfish")
        .stdin(lines)
        .timeout(Duration::from_secs(3000));
    let ran = ran
        .env("LIBGUESTFS_BACKEND", "direct")
        .env("LIBGUESTFS_BACKEND_SETTINGS", "force_tcg");
    let ran = ran
        .env("LIBGUESTFS_CACHEDIR", folder)
        .env("TMPDIR", folder)
        .run()?;
    println!(
        "guestfish took {:.0} s for {count} disks",
        ran.took.as_secs_f64()
    );
    Ok(ran.transcript())
}

/// As the appliance's kernel names its disks.
fn disk_name(index: usize) -> String {
    let letter = |index: usize| char::from(b'a' + (index % 26) as u8);
    match index {
        0..26 => format!("/dev/sd{}", letter(index)),
        _ => format!("/dev/sd{}{}", letter(index / 26 - 1), letter(index)),
    }
}

impl Guested {
    fn sector(&self) -> u64 {
        self.machine
            .places()
            .first()
            .map_or(512, |place| place.sector)
    }

    /// Mounts the machine as its fstab says, and has the files summed up.
    fn files_script(&self, folder: &Path) -> Result<String> {
        let mut script = String::from("-umount-all\n");
        for mount in self.layout.mounts {
            let Mount::Place(place, at, options) = mount else {
                continue;
            };
            let device = self.device(*place, at)?;
            match options.is_empty() {
                true => script.push_str(&format!("-mount {device} {at}\n")),
                false => script.push_str(&format!("-mount-options {options} {device} {at}\n")),
            }
        }
        for (index, (below, _)) in self.folders().iter().enumerate() {
            script.push_str(&format!(
                "-checksums-out sha256 {below} {}\n",
                self.sums_file(folder, index).display()
            ));
        }
        Ok(script)
    }

    /// Folders to be summed up, and where the node sees them: what a bind mount shows lies
    /// elsewhere.
    fn folders(&self) -> Vec<(&'static str, &'static str)> {
        let binds = self.layout.mounts.iter().filter_map(|mount| match mount {
            Mount::Bind(from, to) => Some((*from, *to)),
            Mount::Place(..) => None,
        });
        let plain = FOLDERS
            .iter()
            .filter(|folder| !binds.clone().any(|(_, to)| to == **folder));
        plain
            .map(|folder| (*folder, *folder))
            .chain(binds.clone())
            .collect()
    }

    fn sums_file(&self, folder: &Path, index: usize) -> PathBuf {
        folder.join(format!("{}-{index}.sums", self.name))
    }

    fn device(&self, place: usize, at: &str) -> Result<String> {
        let place = self.machine.places().get(place).context("no such place")?;
        let index = self
            .machine
            .images
            .iter()
            .position(|image| *image == place.image)
            .context("no such image")?;
        let disk = self.disks.get(index).context("no such disk")?;
        if place.offset == 0 {
            return Ok(disk.clone());
        }
        let line = self
            .layout
            .fstab
            .lines()
            .find(|line| line.split_whitespace().nth(1) == Some(at));
        let called = line
            .and_then(|line| line.split_whitespace().next())
            .unwrap_or_default();
        if LOGICAL.contains(&called) {
            return Ok(called.to_owned());
        }
        Ok(format!("{disk}{}", partition_number(place)?))
    }

    fn sums(&self, folder: &Path) -> Result<Sums> {
        let mut sums = Sums::new();
        for (index, (_, seen_at)) in self.folders().iter().enumerate() {
            let Ok(text) = fs::read_to_string(self.sums_file(folder, index)) else {
                continue;
            };
            for line in text.lines() {
                // sha256sum's own form; odd names would begin with a backslash.
                let (sum, name) = line
                    .split_once("  ")
                    .with_context(|| format!("no checksum: {line:?}"))?;
                sums.insert(
                    Path::new(seen_at).join(name.trim_start_matches("./")),
                    sum.to_owned(),
                );
            }
        }
        Ok(sums)
    }

    /// The root as libguestfs' inspection names it.
    fn root(&self) -> Result<String> {
        let root = self.layout.mounts.iter().find_map(|mount| match mount {
            Mount::Place(place, "/", options) => Some((*place, *options)),
            _ => None,
        });
        let (place, options) = root.context("no root")?;
        let device = self.device(place, "/")?;
        // Its inspection calls volumes by their group's folder.
        let device = device.replace("/dev/mapper/centos-root", "/dev/centos/root");
        Ok(match options.strip_prefix("subvol=") {
            Some(subvolume) => format!("btrfsvol:{device}/{subvolume}"),
            None => device,
        })
    }

    fn facts_script(&self) -> Result<String> {
        let root = self.root()?;
        let facts = ["hostname", "distro", "major-version"];
        let facts: String = facts
            .iter()
            .map(|fact| format!("-inspect-get-{fact} {root}\n"))
            .collect();
        Ok(format!("echo =={}\n{facts}echo ==end\n", self.name))
    }

    fn guest(&self) -> Result<Guest> {
        let sources: Vec<Source> = self
            .machine
            .images
            .iter()
            .cloned()
            .map(Source::Disk)
            .collect();
        let mut guests = discover(&sources)?.guests;
        ensure!(guests.len() == 1, "{guests:?}");
        guests.pop().context("no guest")
    }

    /// How many files are the same; `None` where guestfish read none.
    fn compare_files(&self, folder: &Path) -> Result<Option<usize>> {
        let theirs = self.sums(folder)?;
        if theirs.is_empty() {
            return Ok(None);
        }
        let ours = sums_of(&self.guest()?)?;
        ensure!(ours.len() > 40, "only {} files", ours.len());
        for (path, sum) in &ours {
            let there = theirs.get(path).map_or("nothing", String::as_str);
            ensure!(
                there == sum,
                "{} is {there} to guestfish, {sum} to us",
                path.display()
            );
        }
        let more: Vec<_> = theirs
            .keys()
            .filter(|path| !ours.contains_key(*path))
            .collect();
        ensure!(more.is_empty(), "guestfish sees {more:?} as well");
        Ok(Some(ours.len()))
    }

    /// Host name and operating system, as its inspection has them.
    fn compare_facts(&self, said: &str) -> Result<String> {
        let own = said
            .split(&format!("=={}\n", self.name))
            .nth(1)
            .and_then(|rest| rest.split("==end").next());
        let lines: Vec<&str> = own.unwrap_or_default().lines().collect();
        let [hostname, distro, version] = lines.as_slice() else {
            anyhow::bail!("{}: {lines:?}\n{said}", self.name)
        };
        let node = Node::read(&self.guest()?);
        let os = node.os.value.clone().unwrap_or_default();
        ensure!(
            node.hostname.value.as_deref() == Some(*hostname),
            "{}: {hostname}, {:?}",
            self.name,
            node.hostname
        );
        let is_same = os.to_lowercase().contains(distro) && os.contains(version);
        ensure!(is_same, "{}: {distro} {version}, {os}", self.name);
        Ok(format!("{hostname}, {distro} {version}"))
    }
}

/// The partition that begins where the file system does, by sfdisk.
fn partition_number(place: &Place) -> Result<u64> {
    let device = Loop::attach(
        &place.image,
        0,
        place.image.metadata()?.len(),
        place.sector,
        true,
    )?;
    let ran = Cmd::new("sfdisk")
        .arg("--json")
        .arg(device.device())
        .run()?;
    if ran.code != 0 {
        // It does not read every table that we do.
        return Ok(1);
    }
    let table = ran.json()?;
    let rows = table["partitiontable"]["partitions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let row = rows
        .iter()
        .find(|row| row["start"].as_u64().map(|start| start * place.sector) == Some(place.offset));
    let node = row.and_then(|row| row["node"].as_str()).map(str::to_owned);
    let number = node.and_then(|node| {
        node.rsplit('p')
            .next()
            .and_then(|number| number.parse().ok())
    });
    // Where its tables differ from what the guest had.
    Ok(number.unwrap_or(1))
}

/// The files of the folders as rescue shows them; no link is followed but in the folder's own path.
fn sums_of(guest: &Guest) -> Result<Sums> {
    let mut sums = Sums::new();
    let mut todo: Vec<PathBuf> = FOLDERS.iter().map(PathBuf::from).collect();
    while let Some(folder) = todo.pop() {
        for entry in guest.read_dir(&GuestPath::new(&folder))? {
            let path = folder.join(&entry.name);
            let at = GuestPath::new(&path);
            match guest.lstat(&at)?.kind {
                FileKind::Directory => todo.push(path),
                FileKind::Regular => {
                    let sum = sha2::Sha256::digest(guest.read(&at)?);
                    sums.insert(path, sum.iter().map(|byte| format!("{byte:02x}")).collect());
                }
                _ => {}
            }
        }
    }
    Ok(sums)
}
