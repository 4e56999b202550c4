//! Encrypted control planes repaired by the kernel's dm-crypt, and judged by programs that decrypt
//! by themselves: version 1, where the repair is undone, by QEMU; version 2 (sectors of 4096 bytes,
//! Argon2, a volume group inside) by cryptsetup.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tests::disk::MIB;
use tests::qemu::Machine;
use tests::snapshot::snapshot;
use tests::{Cmd, lvm};

use crate::{ANSWER, Disk, REPAIR, Rack, assert_repaired, control_plane, rescue};

pub const PASSPHRASE: &str = "correct horse";
/// Twice cryptsetup's header, by which a file that is encrypted in place grows.
const ROOM: u64 = 32 * MIB;

pub struct Nodes {
    folder: PathBuf,
    /// As it was before it was encrypted.
    plain: Disk,
    first: String,
    second: String,
    /// Where the logical volume lies in the second disk.
    places: lvm::Places,
    before: Vec<String>,
}

fn cryptsetup(folder: &Path, words: &[&str]) -> Cmd {
    let key = folder.join("key");
    Cmd::new("cryptsetup")
        .args(["-q", "--disable-locks"])
        .args(words)
        .arg("--key-file")
        .arg(key)
        .timeout(ANSWER)
}

/// Encrypts a file in place.
fn encrypt(disk: &Path, options: &[&str]) -> Result<()> {
    let file = File::options().write(true).open(disk)?;
    file.set_len(file.metadata()?.len() + ROOM)?;
    let folder = disk.parent().unwrap_or(Path::new("/"));
    let words = [
        "reencrypt",
        "--encrypt",
        "--type",
        "luks2",
        "--reduce-device-size",
        "32M",
    ];
    cryptsetup(folder, &words)
        .args(options)
        .arg(disk)
        .ok()
        .map(drop)
}

impl Nodes {
    pub fn prepare(folder: &Path, rack: &mut Rack) -> Result<Self> {
        fs::write(folder.join("key"), PASSPHRASE)?;
        let [first, second] = ["luks1.img", "luks2.img"].map(|name| folder.join(name));
        let plain = control_plane(&folder.join("plain.img"))?;
        plain.copy_to(&first)?;
        encrypt(
            &first,
            &["--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"],
        )?;
        cryptsetup(folder, &["convert", "--type", "luks1"])
            .arg(&first)
            .ok()?;

        File::create(&second)?.set_len(80 * MIB)?;
        let disks = [second.clone()];
        let places = lvm::on(&disks, |devices, run| {
            run(&["pvcreate", "-q", &devices[0]])?;
            run(&["vgcreate", "-q", "system", &devices[0]])?;
            run(&[
                "lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", "root", "-L", "72m", "system",
            ])?;
            lvm::Places::of("system/root", 0, devices, &disks, run)
        })?;
        places.pour(&plain.path)?;
        encrypt(
            &second,
            &[
                "--pbkdf-force-iterations",
                "4",
                "--pbkdf-memory",
                "1024",
                "--sector-size",
                "4096",
            ],
        )?;

        let before = [&first, &second]
            .map(|path| sha256(path))
            .into_iter()
            .collect::<Result<_>>()?;
        let [first, second] = [&first, &second].map(|path| rack.add(path));
        Ok(Self {
            folder: folder.to_owned(),
            plain,
            first,
            second,
            places,
            before,
        })
    }

    fn image(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn work(&self, machine: &mut Machine) -> Result<()> {
        let Self { first, second, .. } = self;
        // Nobody is at the terminal to try another.
        let wrong = format!("RESCUE_LUKS_PASSPHRASE=wrong {REPAIR} {first} {second} </dev/null");
        let said = rescue(machine, &wrong, 3)?;
        ensure!(
            said.matches("none of the passphrases given opens it")
                .count()
                == 2,
            "{said}"
        );
        ensure!(
            said.matches("rescue: ").count() == 1 && said.contains("no file was changed"),
            "{said}"
        );
        for (name, before) in ["luks1.img", "luks2.img"].iter().zip(&self.before) {
            ensure!(
                sha256(&self.image(name))? == *before,
                "{name} was written to without its passphrase"
            );
        }

        machine.shell(
            &format!("export RESCUE_LUKS_PASSPHRASE='{PASSPHRASE}'"),
            ANSWER,
        )?;
        for disk in [first, second] {
            let said = rescue(machine, &format!("{REPAIR} {disk}"), 0)?;
            ensure!(said.contains("Repaired k8s-master01"), "{said}");
        }
        rescue(machine, &format!("rescue undo --yes {first}"), 0)?;
        let said = machine.shell("unset RESCUE_LUKS_PASSPHRASE; ls /sys/block", ANSWER)?;
        ensure!(!said.contains("dm-"), "a device of ours is left: {said}");
        Ok(())
    }

    pub fn judge(&self) -> Result<()> {
        let decrypted = self.image("decrypted.img");
        let secret = format!("secret,id=key,file={}", self.image("key").display());
        let image = format!(
            "driver=luks,key-secret=key,file.filename={}",
            self.image("luks1.img").display()
        );
        let convert = [
            "convert",
            "--object",
            &secret,
            "--image-opts",
            &image,
            "-O",
            "raw",
        ];
        Cmd::new("qemu-img").args(convert).arg(&decrypted).ok()?;
        let undone = Disk {
            path: decrypted,
            ..self.plain.clone()
        };
        undone.assert_clean()?;
        let (before, after) = (
            self.plain.mounted_read_only(snapshot)?,
            undone.mounted_read_only(snapshot)?,
        );
        ensure!(
            before == after,
            "the undo of version 1 did not restore everything"
        );
        let runs = undone.mounted_read_only(|root| {
            Ok(fs::read_dir(root.join("var/lib/rescue/runs"))?.count())
        })?;
        ensure!(runs == 1, "{runs} runs are written down");

        let header = self.image("header").display().to_string();
        let decrypt = [
            "reencrypt",
            "--decrypt",
            "--force-offline-reencrypt",
            "--header",
            &header,
        ];
        cryptsetup(&self.folder, &decrypt)
            .arg(self.image("luks2.img"))
            .ok()?;
        let drawn = self.image("drawn.img");
        self.places.draw(&drawn)?;
        assert_repaired(&Disk {
            path: drawn,
            ..self.plain.clone()
        })
    }
}

fn sha256(path: &Path) -> Result<String> {
    Ok(Cmd::new("sha256sum")
        .arg(path)
        .ok()?
        .stdout
        .split(' ')
        .next()
        .unwrap_or_default()
        .to_owned())
}
