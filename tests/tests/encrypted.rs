//! LUKS volumes made by the real cryptsetup, which encrypts a file in place without device-mapper;
//! read without it as well.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rescue::base::refusal::Refusal;
use rescue::disk::luks::{self, keys};
use rescue::disk::volume::{encrypted, survey};
use rescue::disk::{Disk, ReadAt, Source};
use rescue::guest::{GuestPath, discover};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tests::command::{Cmd, Ran};
use tests::disk::MIB;
use tests::mounts::Loop;
use tests::programs::rescue_faulty;

const PASSPHRASE: &str = "correct horse";
/// Half of it is cryptsetup's header.
const ROOM: &str = "32M";

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Result<Self> {
        let folder = Self(tempfile::Builder::new().prefix("rescue-luks-").tempdir()?);
        fs::write(folder.at("key"), PASSPHRASE)?;
        Ok(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// An ext4 that counts as a root.
    fn root(&self, name: &str, fstab: &str) -> Result<PathBuf> {
        let tree = self.at(&format!("tree-{name}"));
        fs::create_dir_all(tree.join("etc"))?;
        fs::create_dir_all(tree.join("usr/bin"))?;
        fs::create_dir_all(tree.join("var"))?;
        if !tree.join("bin").is_symlink() {
            symlink("usr/bin", tree.join("bin"))?;
        }
        fs::write(tree.join("etc/hostname"), name)?;
        fs::write(tree.join("etc/fstab"), fstab)?;
        fs::write(tree.join("noise"), noise(3 << 20))?;
        let image = self.at(name);
        File::create(&image)?.set_len(16 * MIB)?;
        Cmd::new("mkfs.ext4")
            .args(["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0", "-d"])
            .arg(&tree)
            .arg(&image)
            .ok()?;
        Ok(image)
    }

    /// Encrypts a file in place; it grows by the header.
    fn encrypt(&self, image: &Path, options: &[&str]) -> Result<()> {
        let file = File::options().write(true).open(image)?;
        file.set_len(file.metadata()?.len() + 32 * MIB)?;
        cryptsetup(&[
            "reencrypt",
            "--encrypt",
            "--type",
            "luks2",
            "--reduce-device-size",
            ROOM,
        ])
        .args(options)
        .args(["--key-file", self.at("key").to_str().context("a path")?])
        .arg(image)
        .ok()
        .map(drop)
    }
}

struct Memory(Vec<u8>);

impl ReadAt for Memory {
    fn len(&self) -> u64 {
        self.0.len() as u64
    }
    fn sector_size(&self) -> u32 {
        512
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        let from = usize::try_from(offset).map_err(|_| std::io::ErrorKind::UnexpectedEof)?;
        let there = self.0.get(from..).and_then(|rest| rest.get(..buffer.len()));
        buffer.copy_from_slice(there.ok_or(std::io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

const CHEAP: [&str; 4] = ["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"];

fn cryptsetup(words: &[&str]) -> Cmd {
    Cmd::new("cryptsetup")
        .args(["-q", "--disable-locks"])
        .args(words)
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// What is behind the header of an image that holds nothing else.
fn decrypted(image: &Path) -> Result<Vec<u8>> {
    let disk = Disk::open(image)?;
    let volumes = survey(&disk, 0)?.volumes;
    let inside = encrypted::unlock(volumes.first().context("no volume")?)??;
    let mut bytes = vec![0; usize::try_from(inside.bytes.len())?];
    let mut at = 0;
    for piece in bytes.chunks_mut(77_777) {
        inside.bytes.read_exact_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(bytes)
}

#[test]
fn luks_of_both_versions_is_read_byte_by_byte() -> Result<()> {
    let folder = Folder::new()?;
    keys::give(PASSPHRASE.as_bytes().to_vec().into());
    let argon = |kind| {
        [
            "--pbkdf",
            kind,
            "--pbkdf-force-iterations",
            "4",
            "--pbkdf-memory",
            "32768",
            "--pbkdf-parallel",
            "4",
        ]
    };
    let (argon2id, argon2i) = (argon("argon2id"), argon("argon2i"));
    let small_key = [&CHEAP[..], &["--key-size", "256", "--hash", "sha1"]].concat();
    let large_sectors = [&CHEAP[..], &["--sector-size", "4096", "--hash", "sha512"]].concat();
    let cases: [&[&str]; 5] = [&argon2id, &argon2i, &CHEAP, &small_key, &large_sectors];
    for options in cases {
        let image = folder.root("plain", "")?;
        let plain = fs::read(&image)?;
        folder.encrypt(&image, options)?;
        let there = decrypted(&image).with_context(|| format!("{options:?}"))?;
        // The last part of what was set aside for the header is behind the data.
        ensure!(
            there.len() >= plain.len() && there[..plain.len()] == plain,
            "{options:?}"
        );
    }
    // The header of version 1, made by cryptsetup from that of version 2.
    let image = folder.root("one", "")?;
    let plain = fs::read(&image)?;
    folder.encrypt(&image, &CHEAP)?;
    cryptsetup(&["convert", "--type", "luks1"])
        .arg(&image)
        .ok()?;
    ensure!(decrypted(&image)?[..plain.len()] == plain, "LUKS1");
    // Another slot of several.
    fs::write(folder.at("other"), "another one\n")?;
    let image = folder.root("slots", "")?;
    let plain = fs::read(&image)?;
    let key = folder.at("key");
    fs::write(&key, "first")?;
    folder.encrypt(&image, &CHEAP)?;
    fs::write(folder.at("second"), PASSPHRASE)?;
    cryptsetup(&["luksAddKey", "--key-file"])
        .arg(&key)
        .args(CHEAP)
        .arg(&image)
        .arg(folder.at("second"))
        .ok()?;
    ensure!(
        decrypted(&image)?[..plain.len()] == plain,
        "the second slot"
    );
    Ok(())
}

/// As Debian's installer lays it out: a volume group in an encrypted partition, and /var encrypted
/// by itself on another disk.
#[test]
fn a_system_on_lvm_in_luks_is_found_with_its_crypttab() -> Result<()> {
    let folder = Folder::new()?;
    let var = folder.at("var");
    File::create(&var)?.set_len(16 * MIB)?;
    fs::create_dir_all(folder.at("var-tree/log"))?;
    Cmd::new("mkfs.ext4")
        .args(["-q", "-F", "-d"])
        .arg(folder.at("var-tree"))
        .arg(&var)
        .ok()?;
    folder.encrypt(&var, &CHEAP)?;
    let uuid = cryptsetup(&["luksUUID"]).arg(&var).ok()?.stdout;

    let tree = folder.at("tree-master01");
    fs::create_dir_all(tree.join("etc"))?;
    fs::write(
        tree.join("etc/crypttab"),
        format!(
            "# name device key\nvar_crypt UUID={} none luks\n",
            uuid.trim()
        ),
    )?;
    let root = folder.root(
        "master01",
        "/dev/mapper/vg-root / ext4 defaults 0 1\n/dev/mapper/var_crypt /var ext4 defaults 0 2\n",
    )?;
    let disk = folder.at("disk");
    File::create(&disk)?.set_len(40 * MIB)?;
    {
        let device = Loop::attach(&disk, 0, 40 * MIB, 512, false)?;
        let node = device.device().display().to_string();
        let lvm = |words: &[&str]| -> Result<Ran> {
            let config = "backup{backup=0 archive=0} activation{udev_sync=0}";
            let (command, rest) = words.split_first().context("no command")?;
            Cmd::new("lvm")
                .args([
                    *command,
                    "--driverloaded",
                    "n",
                    "--devices",
                    &node,
                    "--config",
                    config,
                ])
                .args(rest)
                .ok()
        };
        lvm(&["pvcreate", "-q", &node])?;
        lvm(&["vgcreate", "-q", "vg", &node])?;
        lvm(&[
            "lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "root", "-l", "4", "vg",
        ])?;
        let start = lvm(&[
            "pvs",
            "--noheadings",
            "--units",
            "b",
            "-o",
            "pe_start",
            &node,
        ])?
        .stdout;
        let start: u64 = start.trim().trim_end_matches('B').parse()?;
        File::options()
            .write(true)
            .open(device.device())?
            .write_all_at(&fs::read(&root)?, start)?;
    }
    folder.encrypt(&disk, &CHEAP)?;

    keys::give(PASSPHRASE.as_bytes().to_vec().into());
    let found = discover(&[Source::Disk(disk), Source::Disk(var)])?;
    let [guest] = found.guests.as_slice() else {
        anyhow::bail!("{found:?}")
    };
    assert_eq!(
        guest.read_text(&GuestPath::new("/etc/hostname"))?,
        "master01"
    );
    let mounted: Vec<&str> = guest
        .file_systems
        .iter()
        .map(|fs| fs.device.as_str())
        .collect();
    assert_eq!(
        guest.file_systems.len(),
        2,
        "{mounted:?} {:?}",
        guest.unresolved
    );
    assert!(
        mounted[0].contains("vg/root") && mounted[1].ends_with("var, decrypted"),
        "{mounted:?}"
    );
    assert!(
        guest.unresolved.is_empty() && found.leftovers.is_empty(),
        "{:?} {:?}",
        guest.unresolved,
        found.leftovers
    );
    Ok(())
}

#[test]
fn what_opens_it_and_what_does_not() -> Result<()> {
    let folder = Folder::new()?;
    let image = folder.root("master01", "")?;
    folder.encrypt(&image, &CHEAP)?;
    let image = image.to_str().context("a path")?;
    let rescue = |words: &[&str], passphrase: &str| -> Result<Ran> {
        let ran = rescue_faulty(0, words)
            .env("RESCUE_LUKS_PASSPHRASE", passphrase)
            .run()?;
        let said = format!("{}{}", ran.stdout, ran.stderr);
        ensure!(!said.contains("horse"), "a passphrase was printed: {said}");
        Ok(ran)
    };
    let inspect = ["inspect", image];
    let none = rescue(&inspect, "")?;
    ensure!(
        none.code == 3
            && none.stderr.contains("no passphrase was given")
            && none.stderr.contains("--luks-key-file FILE"),
        "{}",
        none.transcript()
    );
    let wrong = rescue(&inspect, "wrong horse")?;
    ensure!(
        wrong.code == 3
            && wrong
                .stderr
                .contains("none of the passphrases given opens it"),
        "{}",
        wrong.transcript()
    );
    let right = rescue(&inspect, PASSPHRASE)?;
    ensure!(right.stdout.contains("master01"), "{}", right.transcript());
    let key = folder.at("key");
    let by_file = rescue(
        &[
            "inspect",
            "--luks-key-file",
            key.to_str().context("a path")?,
            image,
        ],
        "",
    )?;
    ensure!(
        by_file.stdout.contains("master01"),
        "{}",
        by_file.transcript()
    );
    let missing = rescue(&["inspect", "--luks-key-file", "/nowhere", image], "")?;
    ensure!(
        missing.code == 2 && missing.stderr.contains("/nowhere"),
        "{}",
        missing.transcript()
    );
    Ok(())
}

#[test]
fn damaged_and_crafted_headers() -> Result<()> {
    let folder = Folder::new()?;
    let good = folder.root("good", "")?;
    folder.encrypt(&good, &CHEAP)?;
    keys::give(PASSPHRASE.as_bytes().to_vec().into());
    let image = folder.at("bad");
    let damage = |pieces: &[(u64, &[u8])]| -> Result<Result<Vec<u8>>> {
        fs::copy(&good, &image)?;
        let file = File::options().write(true).open(&image)?;
        for (at, bytes) in pieces {
            file.write_all_at(bytes, *at)?;
        }
        Ok(decrypted(&image))
    };
    // One copy of the header is enough.
    let whole = decrypted(&good)?;
    ensure!(damage(&[(5000, b"x")])?? == whole && damage(&[(0x4000, &[0; 4096])])?? == whole);
    for pieces in [
        &[(5000, &b"x"[..]), (0x4000 + 5000, b"x")][..],
        &[(8, &[0xff; 8]), (0x4008, &[0xff; 8])],
    ] {
        let error = damage(pieces)?.unwrap_err();
        ensure!(format!("{error:#}").contains("checksum"), "{error:#}");
    }
    // Version 1 has no checksum: every field may be anything. Nothing panics, nothing takes for
    // ever.
    cryptsetup(&["convert", "--type", "luks1"])
        .arg(&good)
        .ok()?;
    let bytes = fs::read(&good)?;
    // The fields of the header, and the first slot.
    for at in (8..256).step_by(4) {
        for value in [[0; 4], [0xff; 4]] {
            let mut bytes = bytes.get(..17 << 20).context("a short image")?.to_vec();
            bytes[at..at + 4].copy_from_slice(&value);
            let memory: Arc<dyn ReadAt> = Arc::new(Memory(bytes));
            let _ = luks::unlock("crafted", &memory);
        }
    }
    // Cut off behind the header, in a key slot, in the header.
    for length in [17 << 20, 16 << 20, 40_000, 592, 300, 8] {
        fs::copy(&good, &image)?;
        File::options().write(true).open(&image)?.set_len(length)?;
        let seen = discover(&[Source::Disk(image.clone())]);
        ensure!(
            seen.is_err_and(|error| error.is::<Refusal>()),
            "cut at {length}"
        );
    }
    Ok(())
}

/// Changes the JSON of both headers of LUKS2, and makes their checksums right again, as whoever can
/// write to the disk may.
fn craft(image: &Path, change: impl Fn(&mut Value)) -> Result<()> {
    let file = File::options().read(true).write(true).open(image)?;
    let mut length = [0; 8];
    file.read_exact_at(&mut length, 8)?;
    let length = usize::try_from(u64::from_be_bytes(length))?;
    for at in [0, length as u64] {
        let mut header = vec![0; length];
        file.read_exact_at(&mut header, at)?;
        let (binary, area) = header.split_at_mut(4096);
        let end = area
            .iter()
            .position(|byte| *byte == 0)
            .context("JSON without an end")?;
        let mut json: Value = serde_json::from_slice(&area[..end])?;
        change(&mut json);
        let json = serde_json::to_vec(&json)?;
        area.fill(0);
        area[..json.len()].copy_from_slice(&json);
        binary[448..512].fill(0);
        let checksum = Sha256::new()
            .chain_update(&*binary)
            .chain_update(&*area)
            .finalize();
        binary[448..480].copy_from_slice(&checksum);
        file.write_all_at(&header, at)?;
    }
    Ok(())
}

/// Tries to open it, which must not take long, and gives the words of the refusal.
fn refused_quickly(image: &Path) -> Result<String> {
    let begin = Instant::now();
    let error = decrypted(image).err().context("it was opened")?;
    ensure!(
        begin.elapsed() < Duration::from_secs(5),
        "{:?}: {error:#}",
        begin.elapsed()
    );
    Ok(format!("{error:#}"))
}

#[test]
fn the_work_of_a_header_is_bounded() -> Result<()> {
    let folder = Folder::new()?;
    keys::give(b"a passphrase of another disk".to_vec().into());
    keys::give(PASSPHRASE.as_bytes().to_vec().into());
    let image = folder.root("master01", "")?;
    let plain = fs::read(&image)?;
    // Below the bound; the second of the passphrases opens it.
    folder.encrypt(
        &image,
        &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "2000000"],
    )?;
    ensure!(decrypted(&image)?[..plain.len()] == plain);

    let good = folder.root("cheap", "")?;
    let plain = fs::read(&good)?;
    folder.encrypt(&good, &CHEAP)?;
    let bad = folder.at("bad");
    let argon2 = |memory: u64, rounds: u64| {
        json!({
            "type": "argon2id", "memory": memory, "time": rounds, "cpus": 4
        })
    };
    let salt = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    let with_salt = |mut kdf: Value| {
        kdf["salt"] = json!(salt);
        kdf
    };
    let pbkdf2 =
        |iterations: u64| json!({ "type": "pbkdf2", "hash": "sha256", "iterations": iterations });
    let kdfs = [
        pbkdf2(1 << 30),
        pbkdf2(u64::from(u32::MAX)),
        pbkdf2(1 << 40),
        argon2(4 << 20, 1000),
        argon2(8, 1 << 31),
    ];
    for kdf in kdfs.map(with_salt) {
        fs::copy(&good, &bad)?;
        craft(&bad, |json| json["keyslots"]["0"]["kdf"] = kdf.clone())?;
        let refusal = refused_quickly(&bad)?;
        ensure!(
            refusal.contains("asks for 1 key slot, the dearest")
                && refusal.contains("cryptsetup open"),
            "{refusal}"
        );
    }
    fs::copy(&good, &bad)?;
    craft(&bad, |json| {
        json["digests"]["0"]["iterations"] = json!(u32::MAX)
    })?;
    ensure!(refused_quickly(&bad)?.contains("a digest of its key with 4294967295 iterations"));

    // A slot that costs too much, preferred to the one that opens it.
    fs::copy(&good, &bad)?;
    craft(&bad, |json| {
        let mut dear = json["keyslots"]["0"].clone();
        dear["kdf"] = with_salt(argon2(4 << 20, 1000));
        dear["priority"] = json!(2);
        json["keyslots"]["1"] = dear;
        json["digests"]["0"]["keyslots"] = json!(["0", "1"]);
    })?;
    ensure!(decrypted(&bad)?[..plain.len()] == plain, "the cheaper slot");

    // Version 1: the iterations of the digest and of the slot, in a header without a checksum. In a
    // process that does not know the key yet.
    cryptsetup(&["convert", "--type", "luks1"])
        .arg(&good)
        .ok()?;
    let image = bad.to_str().context("a path")?;
    for at in [164, 208 + 4] {
        fs::copy(&good, &bad)?;
        File::options()
            .write(true)
            .open(&bad)?
            .write_all_at(&[0xff; 4], at)?;
        let begin = Instant::now();
        let refused = rescue_faulty(0, ["inspect", image])
            .env("RESCUE_LUKS_PASSPHRASE", PASSPHRASE)
            .run()?;
        ensure!(
            begin.elapsed() < Duration::from_secs(10),
            "{:?}",
            begin.elapsed()
        );
        ensure!(
            refused.code == 3
                && refused.stderr.contains("no Linux system was found")
                && refused.stderr.contains("4294967295 iterations")
                && refused
                    .stderr
                    .contains("give /dev/mapper/NAME to rescue instead"),
            "{}",
            refused.transcript()
        );
    }
    Ok(())
}
