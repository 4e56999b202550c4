//! fstab lines that want a disk which is not there: named, and made optional only where the node
//! does not live on them and after asking.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use tests::command::{Cmd, Ran};
use tests::disk::{Disk, MIB, control_plane};
use tests::programs::rescue_faulty;

const NOW: &str = "2026-11-23T08:00:00Z";

fn rescue(words: &[&str]) -> Result<Ran> {
    rescue_faulty(0, words).run()
}

fn with_fstab(folder: &Path, lines: &str) -> Result<Disk> {
    let disk = control_plane(&folder.join("disk.img"), 700 * MIB)?;
    disk.mounted(|root| {
        let fstab = root.join("etc/fstab");
        let text = fs::read_to_string(&fstab)? + lines;
        fs::create_dir_all(root.join("data"))?;
        fs::create_dir_all(root.join("backup"))?;
        Ok(fs::write(fstab, text)?)
    })?;
    Ok(disk)
}

fn modes(image: &str) -> Result<Vec<String>> {
    let seen = rescue(&["inspect", "--json", "--only", "fstab", "--now", NOW, image])?;
    let json = seen.json()?;
    let findings = json["nodes"][0]["findings"].as_array().cloned();
    let modes = findings.unwrap_or_default();
    let modes = modes.iter().filter_map(|one| one["mode"].as_str());
    Ok(modes.map(str::to_owned).collect())
}

const GONE: &str = "UUID=2f5d3f3c-1111-4222-8333-0123456789ab /data xfs defaults 0 0\n\
    /dev/disk/by-id/scsi-36000c29deadbeef00000000000000001-part1 /backup ext4 defaults 0 2\n";

#[test]
fn two_disks_that_are_gone_are_named_and_the_boot_goes_on_without_them_after_asking() -> Result<()>
{
    let folder = tempfile::Builder::new().prefix("rescue-fstab-").tempdir()?;
    let disk = with_fstab(folder.path(), GONE)?;
    let image = disk.path.to_str().unwrap_or_default();
    ensure!(
        modes(image)? == ["fstab.missing-disk"; 2],
        "{:?}",
        modes(image)?
    );
    let seen = rescue(&["inspect", "--only", "fstab", "--now", NOW, image])?;
    let is_said = ["/data", "/backup", "does NOT come back"];
    let is_said = is_said.iter().all(|word| seen.stdout.contains(word));
    ensure!(seen.code == 1 && is_said, "{}", seen.transcript());

    let asked = rescue(&["repair", "--yes", "--only", "fstab", "--now", NOW, image])?;
    ensure!(
        asked.code == 1 && modes(image)?.len() == 2,
        "{}",
        asked.transcript()
    );
    let words = [
        "repair", "--yes", "--only", "fstab", "--allow", "fstab", "--now", NOW, image,
    ];
    let ran = rescue(&words)?;
    ensure!(
        ran.code == 0 && modes(image)?.is_empty(),
        "{}",
        ran.transcript()
    );
    // The judge of the lines is libmount's own.
    disk.mounted_read_only(|root| {
        let judged = Cmd::new("findmnt")
            .args(["--verify", "--tab-file"])
            .arg(root.join("etc/fstab"))
            .run()?;
        ensure!(
            judged.stderr.contains("0 parse errors"),
            "{}",
            judged.transcript()
        );
        let text = fs::read_to_string(root.join("etc/fstab"))?;
        ensure!(text.matches("nofail").count() == 2, "{text}");
        Ok(())
    })?;
    disk.assert_clean()
}

#[test]
fn what_the_node_lives_on_and_what_is_there_are_left() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("rescue-fstab-").tempdir()?;
    let lines = "UUID=2f5d3f3c-1111-4222-8333-0123456789ab /var/lib/etcd ext4 defaults 0 0\n\
        LABEL=optional /data xfs nofail 0 0\n";
    let disk = with_fstab(folder.path(), lines)?;
    let image = disk.path.to_str().unwrap_or_default();
    ensure!(modes(image)? == ["fstab.missing-disk"]);
    let words = [
        "repair", "--yes", "--only", "fstab", "--allow", "fstab", "--now", NOW, image,
    ];
    let ran = rescue(&words)?;
    ensure!(
        ran.code == 1 && modes(image)?.len() == 1,
        "{}",
        ran.transcript()
    );
    ensure!(
        ran.stdout.contains("never made optional"),
        "{}",
        ran.transcript()
    );
    Ok(())
}
