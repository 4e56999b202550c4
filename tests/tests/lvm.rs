//! LVM2 made by lvm2 itself, read without device-mapper. Where a volume's bytes go is asked of
//! lvm2, never of our own reader.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use rescue::base::refusal::Refusal;
use rescue::disk::Source;
use rescue::disk::device_mapper::DeviceMapper;
use rescue::guest::{Discovery, GuestPath, discover};
use rescue::repair::write_mount::WritableGuest;
use tests::disk::MIB;
use tests::{Cmd, centos, fill, judge, lvm, rescue, rescue_faulty};

const CHUNK: u64 = 64 << 10;

fn images(folder: &Path, count: usize) -> Result<Vec<PathBuf>> {
    let paths: Vec<PathBuf> = (0..count)
        .map(|number| folder.join(format!("disk{number}.img")))
        .collect();
    for path in &paths {
        File::create(path)?.set_len(100 * MIB)?;
    }
    Ok(paths)
}

/// An ext4 of so many bytes that counts as a root and has a large file with a known content.
fn root(folder: &Path, name: &str, length: u64, fstab: &str) -> Result<PathBuf> {
    let tree = folder.join(format!("tree-{name}"));
    fs::create_dir_all(tree.join("etc"))?;
    fs::create_dir_all(tree.join("usr/bin"))?;
    fs::create_dir_all(tree.join("var"))?;
    symlink("usr/bin", tree.join("bin"))?;
    fs::write(tree.join("etc/hostname"), name)?;
    fs::write(tree.join("etc/fstab"), fstab)?;
    fs::write(tree.join("large"), large())?;
    let image = folder.join(format!("{name}.ext4"));
    File::create(&image)?.set_len(length)?;
    Cmd::new("mkfs.ext4")
        .args(["-q", "-F", "-E", "lazy_itable_init=0", "-d"])
        .arg(&tree)
        .arg(&image)
        .ok()?;
    Ok(image)
}

fn large() -> Vec<u8> {
    (0..4_000_000_u32).flat_map(u32::to_le_bytes).collect()
}

fn on(paths: &[PathBuf]) -> Result<Discovery> {
    discover(&paths.iter().cloned().map(Source::Disk).collect::<Vec<_>>())
}

/// Two disks, one group: root over both, as `layout` asks.
fn machine(folder: &Path, layout: &[&str], stripe: u64) -> Result<Vec<PathBuf>> {
    let disks = images(folder, 2)?;
    let swap = "/dev/my-vg/swap none swap sw 0 0\n/dev/mapper/my--vg-var /var ext4 defaults 0 0\n";
    let file = root(folder, "node1", 120 * MIB, swap)?;
    lvm::on(&disks, |devices, run| {
        let names: Vec<&str> = devices.iter().map(String::as_str).collect();
        run(&[
            &["pvcreate", "-q", "--metadatasize", "64k"],
            names.as_slice(),
        ]
        .concat())?;
        run(&[&["vgcreate", "-q", "my-vg"], names.as_slice()].concat())?;
        let create = [
            "lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "root", "-L", "120m",
        ];
        run(&[create.as_slice(), layout, &["my-vg"]].concat())?;
        run(&[
            "lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "swap", "-L", "8m", "my-vg",
        ])?;
        // Often enough that the text goes round in its area, wherever that begins.
        for turn in 0..24 {
            let tag = format!("{turn}-{}", "x".repeat(200));
            run(&["vgchange", "-q", "--addtag", &tag, "my-vg"])?;
        }
        lvm::Places::of("my-vg/root", stripe, devices, &disks, run)?.pour(&file)
    })?;
    Ok(disks)
}

fn assert_reads(disks: &[PathBuf]) -> Result<()> {
    let mut found = on(disks)?;
    ensure!(found.guests.len() == 1, "{found:?}");
    let guest = found.guests.pop().context("no guest")?;
    ensure!(guest.read_text(&GuestPath::new("/etc/hostname"))? == "node1");
    let read = guest.tree().read(Path::new("/large"), 64 << 20)?;
    ensure!(read == large(), "the file is not what was written");
    // The swap line resolves; /var does not, and is said.
    ensure!(
        guest.unresolved.len() == 1 && guest.unresolved[0].contains("my--vg-var"),
        "{:?}",
        guest.unresolved
    );
    let (source, file_systems) = (guest.source.clone(), guest.file_systems.clone());
    drop(guest);
    match (
        DeviceMapper::open()?,
        WritableGuest::open(&source, &file_systems),
    ) {
        (Some(_), opened) => opened?.close(),
        (None, opened) => {
            let refused = opened
                .map(|_| ())
                .unwrap_err()
                .downcast::<Refusal>()?
                .to_string();
            ensure!(
                refused.contains("in several pieces") && refused.contains("modprobe dm_mod"),
                "{refused}"
            );
            Ok(())
        }
    }
}

#[test]
fn a_volume_over_two_disks_end_to_end() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disks = machine(folder.path(), &[], 0)?;
    assert_reads(&disks)?;
    assert_reads(&[disks[1].clone(), disks[0].clone()])?;

    // One disk alone: what is missing is said.
    let refused = on(&disks[..1]).unwrap_err();
    ensure!(
        format!("{refused:#}").contains("a disk that was not given"),
        "{refused:#}"
    );

    // Beside copies of both, which parts belong together cannot be told.
    let mut all = disks.clone();
    for disk in &disks {
        let copy = disk.with_extension("copy");
        fs::copy(disk, &copy)?;
        all.push(copy);
    }
    let refused = format!("{:#}", on(&all).unwrap_err());
    ensure!(
        refused.contains("copies of one volume group") && refused.contains("disk1.copy"),
        "{refused}"
    );

    // One machine's group was changed since: now it can.
    let copies = [
        disks[0].with_extension("copy"),
        disks[1].with_extension("copy"),
    ];
    lvm::on(&copies, |_, run| {
        run(&["vgchange", "-q", "--addtag", "changed", "my-vg"]).map(drop)
    })?;
    let found = on(&all)?;
    let guests: Vec<&str> = found
        .guests
        .iter()
        .map(|guest| guest.source.as_str())
        .collect();
    ensure!(guests.len() == 2, "{found:?}");
    for guest in &found.guests {
        let backing = &guest.file_systems[0].backing;
        let kind = |path: &Path| path.extension().map(ToOwned::to_owned);
        let kinds: Vec<_> = backing
            .disks()
            .into_iter()
            .map(|(path, _)| kind(path))
            .collect();
        ensure!(
            kinds.len() == 2 && kinds[0] == kinds[1],
            "parts of two machines in one volume: {backing:?}"
        );
        ensure!(
            guest.tree().read(Path::new("/large"), 64 << 20)? == large(),
            "the file is not what was written"
        );
    }
    drop(found);

    // A label with one wrong bit is not believed.
    File::options()
        .write(true)
        .open(&disks[0])?
        .write_all_at(&[0xff], 512 + 40)?;
    let refused = format!("{:#}", on(&disks).unwrap_err());
    ensure!(refused.contains("checksum of its label"), "{refused}");
    std::io::stdout().flush()?;
    Ok(())
}

#[test]
fn a_striped_volume() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disks = machine(folder.path(), &["-i", "2", "-I", "64k"], CHUNK)?;
    assert_reads(&disks)?;

    // The machine's own administrator wanted nobody to write to it.
    lvm::on(&disks, |_, run| {
        run(&["lvchange", "-q", "-p", "r", "my-vg/root"]).map(drop)
    })?;
    let guest = on(&disks)?.guests.pop().context("no guest")?;
    let (source, file_systems) = (guest.source.clone(), guest.file_systems.clone());
    drop(guest);
    let refused = WritableGuest::open(&source, &file_systems)
        .map(|_| ())
        .unwrap_err()
        .downcast::<Refusal>()?;
    ensure!(
        refused.next.contains("lvchange -p rw my-vg/root"),
        "{refused}"
    );
    Ok(())
}

/// A machine of the outage, whose root is a volume in one piece: no device-mapper is needed for it.
#[test]
fn a_centos_node_is_repaired_and_a_copy_beside_it_is_left_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let node = centos::control_plane(&folder.path().join("node.img"), 600 * MIB)?;
    let clone = node.copy_to(&folder.path().join("clone.img"))?;
    node.mounted(fill::to_enospc)?;
    centos::cut_power(&node, |root| {
        Ok(fs::write(root.join("etc/motd"), "written last\n")?)
    })?;
    let before = clone.sha256()?;
    let (first, second) = (node.path.to_string_lossy(), clone.path.to_string_lossy());

    // Every UUID and every name is there twice: nobody is there to say which is meant, so neither
    // is touched.
    let refused = rescue(["repair", "--yes", &first, &second]).run()?;
    ensure!(
        refused.code == 3 && refused.stderr.contains("are copies of one system"),
        "{refused:?}"
    );
    // Killed while it changes files: the kernel unmounts what is left in order, so that nothing is
    // in the log, and the next run goes on.
    let killed = rescue_faulty(60, ["repair", "--yes", "--node", &first, &second, &first]).run()?;
    ensure!(killed.stderr.contains("abort at point 60"), "{killed:?}");
    node.assert_clean()?;
    // Told which, it is that one.
    let ran = rescue(["repair", "--yes", "--node", &first, &second, &first]).ok()?;
    ensure!(ran.stdout.contains("Repaired"), "{}", ran.stdout);
    ensure!(clone.sha256()? == before, "the copy was written to");
    node.assert_clean()?;
    let judgement = judge::disk(&node)?;
    ensure!(judgement.healthy(), "{:#?}", judgement.rows());
    ensure!(
        node.mounted_read_only(|root| Ok(fs::read_to_string(root.join("etc/motd"))?))?
            == "written last\n"
    );

    rescue(["undo", "--yes", &first]).ok()?;
    node.assert_clean()?;
    ensure!(
        !judge::disk(&node)?.kubelet.good,
        "undone, the certificates are over again"
    );
    Ok(())
}
