//! The layouts: how each disk is divided and formatted, what the guest's fstab says, and what
//! happened to it since.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;

use anyhow::{Context as _, Result};
use tests::command::Cmd;
use tests::disk::{DiskBuilder, FileSystem, MIB, Partition, Table};
use tests::lvm;
use tests::mounts::Loop;

use crate::machine::Place;

pub enum Mount {
    /// A file system (by its index), where, with which options.
    Place(usize, &'static str, &'static str),
    /// A folder shown in a second place.
    Bind(&'static str, &'static str),
}

type Build = Box<dyn Fn(&Path) -> Result<Vec<Place>> + Send + Sync>;

pub struct Layout {
    pub build: Build,
    pub fstab: &'static str,
    /// Parents first.
    pub mounts: &'static [Mount],
    /// btrfs: of which place, their names, the default one.
    pub subvolumes: Option<(usize, &'static [&'static str], Option<&'static str>)>,
    /// After the node's files are there.
    pub arrange: fn(&Path) -> Result<()>,
    /// To the first image, when nothing is mounted any more.
    pub damage: fn(&Path) -> Result<()>,
    pub power_cut: bool,
    /// What an inspection says besides.
    pub says: &'static [&'static str],
}

const ROOT: &[Mount] = &[Mount::Place(0, "/", "")];

impl Layout {
    fn new(build: Build) -> Self {
        Self {
            build,
            fstab: "LABEL=root / auto defaults 0 1\n",
            mounts: ROOT,
            subvolumes: None,
            arrange: |_| Ok(()),
            damage: |_| Ok(()),
            power_cut: false,
            says: &[],
        }
    }

    /// One disk.
    fn on(disk: DiskBuilder) -> Self {
        Self::disks(vec![disk])
    }

    fn disks(disks: Vec<DiskBuilder>) -> Self {
        Self::new(Box::new(move |folder| {
            let mut places = Vec::new();
            for (number, builder) in disks.iter().enumerate() {
                let disk = builder
                    .clone()
                    .build(&folder.join(format!("disk{number}.img")))?;
                places.extend(disk.volumes.iter().map(|volume| Place {
                    image: disk.path.clone(),
                    offset: volume.offset,
                    size: volume.size,
                    sector: disk.sector,
                }));
            }
            Ok(places)
        }))
    }
}

fn gpt(size: u64) -> DiskBuilder {
    DiskBuilder::new(size * MIB)
}

fn part(kind: FileSystem, label: &str) -> Partition {
    Partition::unmounted(kind).label(label)
}

fn ext4() -> Partition {
    part(FileSystem::Ext4, "root")
}

fn xfs() -> Partition {
    part(FileSystem::Xfs, "root")
}

fn btrfs() -> Partition {
    part(FileSystem::Btrfs, "root")
}

pub fn gpt_ext4() -> Layout {
    Layout::on(gpt(64).partition(ext4()))
}

pub fn gpt_ext4_with_4k_sectors() -> Layout {
    Layout::on(gpt(64).sector_size(4096).partition(ext4()))
}

pub fn mbr_ext4() -> Layout {
    Layout::on(gpt(64).table(Table::Mbr).partition(ext4()))
}

pub fn mbr_ext4_with_4k_sectors() -> Layout {
    Layout::on(
        gpt(64)
            .table(Table::Mbr)
            .sector_size(4096)
            .partition(ext4()),
    )
}

pub fn mbr_logical_ext3() -> Layout {
    let disk = gpt(96)
        .table(Table::MbrLogical)
        .partition(part(FileSystem::Swap, "swap").size(16 * MIB));
    let mounts = &[Mount::Place(1, "/", "")];
    let fstab = "/dev/sda6 / ext3 defaults 0 1\n/dev/sda5 none swap sw 0 0\n";
    Layout {
        mounts,
        fstab,
        ..Layout::on(disk.partition(part(FileSystem::Ext3, "root")))
    }
}

pub fn no_table_ext4() -> Layout {
    Layout {
        fstab: "/dev/vda / ext4 defaults 0 1\n",
        ..Layout::on(gpt(64).table(Table::Bare).partition(ext4()))
    }
}

pub fn gpt_ext2() -> Layout {
    Layout::on(gpt(64).partition(part(FileSystem::Ext2, "root")))
}

pub fn ext4_without_a_journal() -> Layout {
    Layout::on(gpt(64).partition(ext4().mkfs(["-O", "^has_journal,^64bit,^extent,^metadata_csum"])))
}

pub fn ext4_with_small_blocks() -> Layout {
    Layout::on(gpt(64).partition(ext4().mkfs(["-b", "1024", "-I", "128", "-O", "^64bit"])))
}

pub fn ext4_with_inline_data() -> Layout {
    Layout::on(gpt(64).partition(ext4().mkfs(["-O", "inline_data", "-I", "512"])))
}

pub fn ext4_after_a_power_cut() -> Layout {
    Layout {
        power_cut: true,
        ..Layout::on(gpt(64).partition(ext4()))
    }
}

pub fn gpt_xfs() -> Layout {
    Layout::on(gpt(310).partition(xfs()))
}

/// Rocky and CentOS without LVM.
pub fn mbr_xfs_with_boot() -> Layout {
    let boot = part(FileSystem::Xfs, "boot").size(310 * MIB);
    Layout {
        mounts: &[Mount::Place(1, "/", ""), Mount::Place(0, "/boot", "")],
        fstab: "/dev/sda2 / xfs defaults 0 0\n/dev/sda1 /boot xfs defaults 0 0\n",
        ..Layout::on(gpt(640).table(Table::Mbr).partition(boot).partition(xfs()))
    }
}

pub fn no_table_xfs() -> Layout {
    Layout::on(gpt(310).table(Table::Bare).partition(xfs()))
}

pub fn xfs_with_4k_sectors() -> Layout {
    Layout::on(
        gpt(310)
            .sector_size(4096)
            .partition(xfs().mkfs(["-s", "size=4096"])),
    )
}

pub fn xfs_after_a_power_cut() -> Layout {
    Layout {
        power_cut: true,
        ..Layout::on(gpt(310).partition(xfs()))
    }
}

pub fn btrfs_without_subvolumes() -> Layout {
    Layout::on(gpt(160).partition(btrfs()))
}

pub fn btrfs_of_ubuntu() -> Layout {
    Layout {
        mounts: &[
            Mount::Place(0, "/", "subvol=@"),
            Mount::Place(0, "/home", "subvol=@home"),
        ],
        subvolumes: Some((0, &["@", "@home", "timeshift-btrfs/snapshots"], None)),
        fstab: "LABEL=root / btrfs defaults,subvol=@ 0 1\n\
            LABEL=root /home btrfs defaults,subvol=@home 0 2\n",
        ..Layout::on(gpt(160).partition(btrfs()))
    }
}

pub fn btrfs_of_suse() -> Layout {
    Layout {
        mounts: &[
            Mount::Place(0, "/", ""),
            Mount::Place(0, "/var", "subvol=@/var"),
            Mount::Place(0, "/root", "subvol=@/root"),
        ],
        subvolumes: Some((
            0,
            &[
                "@",
                "@/var",
                "@/root",
                "@/.snapshots",
                "@/.snapshots/1/snapshot",
            ],
            Some("@/.snapshots/1/snapshot"),
        )),
        fstab: "LABEL=root / btrfs defaults 0 0\nLABEL=root /var btrfs subvol=/@/var 0 0\n\
                LABEL=root /root btrfs subvol=/@/root 0 0\n",
        arrange: |root| {
            fs::create_dir(root.join(".snapshots"))?;
            // What snapper would have made of it.
            Cmd::new("btrfs")
                .args(["subvolume", "snapshot", "-r"])
                .arg(root)
                .arg(root.join(".snapshots/2"))
                .ok()?;
            Cmd::new("btrfs")
                .args(["subvolume", "delete"])
                .arg(root.join(".snapshots/2"))
                .ok()
                .map(drop)
        },
        ..Layout::on(gpt(160).partition(btrfs()))
    }
}

/// As systemd's tmpfiles makes them: no line of fstab names them.
pub fn btrfs_with_a_nested_var() -> Layout {
    Layout {
        mounts: &[Mount::Place(0, "/", "subvol=root")],
        subvolumes: Some((0, &["root", "root/var", "root/var/lib/kubelet"], None)),
        fstab: "LABEL=root / btrfs subvol=root,compress=zstd 0 0\n",
        ..Layout::on(gpt(160).partition(btrfs()))
    }
}

pub fn no_table_btrfs() -> Layout {
    Layout::on(
        gpt(160)
            .table(Table::Bare)
            .partition(btrfs().mkfs(["--csum", "xxhash", "--mixed"])),
    )
}

pub fn everything_on_its_own() -> Layout {
    let small = |label: &str| part(FileSystem::Ext4, label).size(24 * MIB);
    let disk = gpt(320)
        .partition(ext4().size(64 * MIB))
        .partition(small("usr"))
        .partition(small("var"))
        .partition(small("lib"))
        .partition(small("kubelet"))
        .partition(small("etcd"))
        .partition(small("log"));
    Layout {
        mounts: &[
            Mount::Place(0, "/", ""),
            Mount::Place(1, "/usr", ""),
            Mount::Place(2, "/var", ""),
            Mount::Place(3, "/var/lib", ""),
            Mount::Place(4, "/var/lib/kubelet", ""),
            Mount::Place(5, "/var/lib/etcd", ""),
            Mount::Place(6, "/var/log", ""),
        ],
        // In no order, as people write it.
        fstab: "LABEL=log /var/log ext4 defaults 0 2\nLABEL=kubelet /var/lib/kubelet ext4 defaults \
            0 2\n\
            LABEL=root / ext4 defaults 0 1\nLABEL=etcd /var/lib/etcd ext4 noatime 0 2\n\
            LABEL=lib /var/lib ext4 defaults 0 2\n\
            LABEL=\"usr\" /usr ext4 defaults 0 2\nLABEL=var /var ext4 defaults 0 2\n\
            tmpfs /tmp tmpfs mode=1777 0 0\n\
            nas:/export /srv nfs4 _netdev 0 0\noverlay /mnt overlay lowerdir=/usr 0 0\n",
        ..Layout::on(disk)
    }
}

pub fn esp_boot_swap_and_var() -> Layout {
    let disk = gpt(256)
        .partition(Partition::unmounted(FileSystem::Nothing).size(16 * MIB))
        .partition(part(FileSystem::Ext2, "boot").size(24 * MIB))
        .partition(part(FileSystem::Swap, "swap").size(16 * MIB))
        .partition(ext4().size(64 * MIB))
        .partition(part(FileSystem::Ext4, "var"));
    Layout {
        mounts: &[
            Mount::Place(3, "/", ""),
            Mount::Place(4, "/var", ""),
            Mount::Place(1, "/boot", ""),
        ],
        fstab: "/dev/sda4 / ext4 errors=remount-ro 0 1\n/dev/sda2 /boot ext2 defaults 0 2\n\
            UUID=DEAD-BEEF /boot/efi vfat umask=0077 0 1\n\
            /dev/sda5 /var ext4 defaults 0 2\nLABEL=swap none swap sw 0 0\n\
            UUID=0-0 /backup ext4 noauto 0 0\n\
            LABEL=gone /gone ext4 nofail 0 0\n",
        arrange: |root| fs::create_dir_all(root.join("boot/efi")).map_err(Into::into),
        damage: |image| {
            let efi = format!("{}@@1M", image.display());
            Cmd::new("mformat")
                .args([
                    "-i", &efi, "-T", "32768", "-h", "16", "-s", "63", "-N", "deadbeef", "::",
                ])
                .ok()?;
            Ok(())
        },
        says: &["LABEL=gone on /gone was not found"],
        ..Layout::on(disk)
    }
}

pub fn var_on_a_second_disk() -> Layout {
    Layout {
        mounts: &[Mount::Place(0, "/", ""), Mount::Place(1, "/var", "")],
        fstab: "/dev/sda1 / ext4 defaults 0 1\n/dev/sdb1 /var xfs defaults 0 0\n",
        ..Layout::disks(vec![
            gpt(64).partition(ext4()),
            gpt(310)
                .table(Table::Mbr)
                .partition(part(FileSystem::Xfs, "var")),
        ])
    }
}

pub fn a_linked_folder_on_a_second_disk() -> Layout {
    Layout {
        mounts: &[Mount::Place(0, "/", ""), Mount::Place(1, "/data", "")],
        fstab: "LABEL=root / ext4 defaults 0 1\nLABEL=my\\040data /data ext4 defaults 0 2\n",
        arrange: |root| {
            fs::create_dir_all(root.join("data"))?;
            fs::create_dir_all(root.join("data/etcd"))?;
            Cmd::new("mv")
                .args(["var/lib/kubelet", "etc/kubernetes", "data/"])
                .dir(root)
                .ok()?;
            // Relative, so that the judge is not led out of the mounted guest.
            symlink("../../data/kubelet", root.join("var/lib/kubelet"))?;
            symlink("/data/etcd", root.join("var/lib/etcd"))?;
            symlink("../data/kubernetes", root.join("etc/kubernetes"))?;
            Ok(())
        },
        ..Layout::disks(vec![
            gpt(64).partition(ext4()),
            gpt(64)
                .table(Table::Bare)
                .partition(part(FileSystem::Ext4, "my data")),
        ])
    }
}

pub fn a_bind_mount() -> Layout {
    Layout {
        mounts: &[
            Mount::Place(0, "/", ""),
            Mount::Place(1, "/data", ""),
            Mount::Bind("/data/kubelet", "/var/lib/kubelet"),
            Mount::Bind("/data/kubernetes", "/etc/kubernetes"),
        ],
        fstab: "LABEL=root / ext4 defaults 0 1\n/data/kubelet /var/lib/kubelet none \
            bind,x-systemd.requires=/data 0 0\n\
            LABEL=data /data xfs defaults,nofail 0 2\n/data/kubernetes /etc/kubernetes none rbind \
            0 0\n",
        arrange: |root| {
            Cmd::new("mv")
                .args(["var/lib/kubelet", "etc/kubernetes", "data/"])
                .dir(root)
                .ok()?;
            fs::create_dir(root.join("var/lib/kubelet"))?;
            fs::create_dir(root.join("etc/kubernetes"))?;
            Ok(())
        },
        ..Layout::on(
            gpt(384)
                .partition(ext4().size(64 * MIB))
                .partition(part(FileSystem::Xfs, "data")),
        )
    }
}

/// File systems just where rescue keeps its records and works.
pub fn over_our_own_paths() -> Layout {
    let small = |label: &str| part(FileSystem::Ext4, label).size(24 * MIB);
    Layout {
        mounts: &[
            Mount::Place(0, "/", ""),
            Mount::Place(1, "/var/lib/rescue", ""),
            Mount::Place(2, "/etc/kubernetes", ""),
            Mount::Place(3, "/etc/kubernetes/pki", ""),
        ],
        fstab: "LABEL=root / ext4 defaults 0 1\nLABEL=ours /var/lib/rescue ext4 defaults 0 2\n\
            LABEL=k8s /etc/kubernetes ext4 defaults 0 2\n\
            LABEL=pki /etc/kubernetes/pki ext4 defaults 0 2\n",
        ..Layout::on(
            gpt(160)
                .partition(ext4().size(64 * MIB))
                .partition(small("ours"))
                .partition(small("k8s"))
                .partition(small("pki")),
        )
    }
}

fn write(image: &Path, offset: u64, bytes: &[u8]) -> Result<()> {
    File::options()
        .write(true)
        .open(image)?
        .write_all_at(bytes, offset)
        .context("damaging the image")
}

pub fn gpt_primary_header_gone() -> Layout {
    Layout {
        damage: |image| write(image, 512, &[0; 512]),
        says: &["the backup at the end of the disk was read"],
        ..Layout::on(gpt(64).partition(ext4()))
    }
}

pub fn gpt_primary_table_damaged_on_an_enlarged_disk() -> Layout {
    Layout {
        damage: |image| {
            File::options().write(true).open(image)?.set_len(96 * MIB)?;
            write(image, 1024 + 56, b"x")
        },
        says: &["where the disk ended before it was enlarged"],
        ..Layout::on(gpt(64).partition(ext4()))
    }
}

pub fn gpt_without_protective_mbr() -> Layout {
    Layout {
        damage: |image| write(image, 0, &[0; 512]),
        says: &["the protective MBR in the first sector is gone"],
        ..Layout::on(gpt(64).partition(ext4()))
    }
}

pub fn gpt_with_hybrid_mbr() -> Layout {
    Layout {
        damage: |image| {
            Cmd::new("sgdisk")
                .args(["-h", "1"])
                .arg(image)
                .ok()
                .map(drop)
        },
        ..Layout::on(gpt(64).partition(ext4()))
    }
}

/// No tool makes them, but the specification allows any 128 × 2ⁿ; rewritten here with their
/// checksums.
pub fn gpt_with_entries_of_256_bytes() -> Layout {
    Layout {
        damage: |image| {
            let file = File::options().read(true).write(true).open(image)?;
            let (mut header, mut old) = ([0; 92], vec![0; 128 * 128]);
            file.read_exact_at(&mut header, 512)?;
            file.read_exact_at(&mut old, 1024)?;
            // Half as many, twice as long, in the same place.
            let table: Vec<u8> = old[..64 * 128]
                .chunks(128)
                .flat_map(|entry| [entry, &[0; 128]].concat())
                .collect();
            file.write_all_at(&table, 1024)?;
            let sum = |bytes: &[u8]| {
                crc::Crc::<u32>::new(&crc::CRC_32_ISO_HDLC)
                    .checksum(bytes)
                    .to_le_bytes()
            };
            header[80..84].copy_from_slice(&64_u32.to_le_bytes());
            header[84..88].copy_from_slice(&256_u32.to_le_bytes());
            header[88..92].copy_from_slice(&sum(&table));
            header[16..20].fill(0);
            let own = sum(&header);
            header[16..20].copy_from_slice(&own);
            file.write_all_at(&header, 512)?;
            Ok(())
        },
        ..Layout::on(gpt(64).partition(ext4()))
    }
}

const PART: &str = "0a1b2c3d-1111-4222-8333-444455556666";

/// One disk divided by sfdisk as `script` says, its partitions formatted as ext4 of the given
/// labels.
fn divided(script: &'static str, labels: &'static [&'static str]) -> Layout {
    Layout::new(Box::new(move |folder| {
        let image = folder.join("disk.img");
        File::create(&image)?.set_len(160 * MIB)?;
        Cmd::new("sfdisk")
            .args(["--quiet", "--no-reread", "--no-tell-kernel"])
            .arg(&image)
            .stdin(script)
            .ok()?;
        let mut places = Vec::new();
        for (number, label) in labels.iter().enumerate() {
            let place = Place {
                image: image.clone(),
                offset: (1 + 64 * number as u64) * MIB,
                size: 64 * MIB,
                sector: 512,
            };
            let device = Loop::attach(&image, place.offset, place.size, 512, false)?;
            Cmd::new("mkfs.ext4")
                .args(["-q", "-F", "-L", label])
                .arg(device.device())
                .ok()?;
            places.push(place);
        }
        Ok(places)
    }))
}

const ROOT_AND_VAR: &[Mount] = &[Mount::Place(0, "/", ""), Mount::Place(1, "/var", "")];

pub fn by_partuuid() -> Layout {
    assert!(FSTAB_BY_PARTUUID.contains(PART));
    Layout {
        mounts: ROOT_AND_VAR,
        fstab: FSTAB_BY_PARTUUID,
        ..divided(
            "label: gpt\nstart=1MiB, size=64MiB, type=L\n\
             start=65MiB, size=64MiB, type=L, uuid=0A1B2C3D-1111-4222-8333-444455556666\n",
            &["one", "two"],
        )
    }
}
const FSTAB_BY_PARTUUID: &str = "LABEL=one / ext4 defaults 0 1\n\
    PARTUUID=\"0a1b2c3d-1111-4222-8333-444455556666\" /var ext4 defaults 0 2\n";

pub fn by_partuuid_of_an_mbr() -> Layout {
    Layout {
        mounts: ROOT_AND_VAR,
        fstab: "PARTUUID=DEADBEEF-01 / ext4 defaults 0 1\n\
            /dev/disk/by-partuuid/deadbeef-02 /var ext4 defaults 0 2\n",
        ..divided(
            "label: dos\nlabel-id: 0xdeadbeef\nstart=1MiB, size=64MiB, type=83\n\
             start=65MiB, size=64MiB, type=83\n",
            &["one", "two"],
        )
    }
}

pub fn by_partlabel_with_blanks() -> Layout {
    Layout {
        mounts: ROOT_AND_VAR,
        fstab: "/dev/disk/by-partlabel/the\\x20root / ext4 defaults 0 1\n\
            PARTLABEL=\"var\\040data\" /var ext4 defaults 0 2\n",
        ..divided(
            "label: gpt\nstart=1MiB, size=64MiB, type=L, name=\"the root\"\n\
             start=65MiB, size=64MiB, type=L, name=\"var data\"\n",
            &["one", "two"],
        )
    }
}

pub fn by_nvme_name() -> Layout {
    Layout {
        mounts: &[
            Mount::Place(0, "/", ""),
            Mount::Place(1, "/var", ""),
            Mount::Place(2, "/var/log", ""),
        ],
        fstab: "/dev/nvme0n1p1 / ext4 defaults 0 1\n/dev/nvme0n1p2 /var ext4 defaults 0 2\n\
            /dev/nvme1n1p1 /var/log ext4 defaults 0 2\n",
        ..Layout::disks(vec![
            gpt(128)
                .partition(ext4().size(48 * MIB))
                .partition(part(FileSystem::Ext4, "var")),
            gpt(48).partition(part(FileSystem::Ext4, "log")),
        ])
    }
}

pub fn by_path_name() -> Layout {
    Layout {
        mounts: ROOT_AND_VAR,
        fstab: "/dev/disk/by-path/pci-0000:03:00.0-scsi-0:0:0:0-part1 / ext4 defaults 0 1\n\
                ID=scsi-36000c29aabbccdd-part2 /var ext4 defaults 0 2\n",
        ..Layout::on(
            gpt(128)
                .partition(ext4().size(48 * MIB))
                .partition(part(FileSystem::Ext4, "var")),
        )
    }
}

/// /boot, and a volume group with root in it. The disk is divided by sfdisk, the group made by lvm2
/// on the partition.
pub fn lvm_on_mbr_as_centos_makes_it() -> Layout {
    Layout {
        mounts: &[Mount::Place(1, "/", ""), Mount::Place(0, "/boot", "")],
        fstab: "/dev/mapper/centos-root / xfs defaults 0 0\n/dev/sda1 /boot ext4 defaults 0 0\n\
            /dev/mapper/centos-swap swap swap defaults 0 0\n",
        ..Layout::new(Box::new(|folder| {
            let boot = part(FileSystem::Ext4, "boot").size(32 * MIB);
            let rest = Partition::unmounted(FileSystem::Nothing);
            let disk = gpt(400)
                .table(Table::Mbr)
                .partition(boot)
                .partition(rest)
                .build(&folder.join("disk.img"))?;
            let (boot, pv) = (&disk.volumes[0], &disk.volumes[1]);
            let place = |offset, size| Place {
                image: disk.path.clone(),
                offset,
                size,
                sector: 512,
            };
            let (at, size) = volume_on(&disk.path, pv.offset, pv.size, "centos", "320M")?;
            format_root(&disk.path, at, size, "mkfs.xfs")?;
            Ok(vec![place(boot.offset, boot.size), place(at, size)])
        }))
    }
}

pub fn lvm_on_a_whole_disk() -> Layout {
    Layout {
        fstab: "/dev/node/root / ext4 defaults 0 1\n",
        ..Layout::new(Box::new(|folder| {
            let image = folder.join("disk.img");
            File::create(&image)?.set_len(100 * MIB)?;
            let (at, size) = volume_on(&image, 0, 100 * MIB, "node", "64M")?;
            format_root(&image, at, size, "mkfs.ext4")?;
            Ok(vec![Place {
                image,
                offset: at,
                size,
                sector: 512,
            }])
        }))
    }
}

/// A group with swap and root on a part of an image; where root came to lie.
fn volume_on(
    image: &Path,
    offset: u64,
    length: u64,
    group: &str,
    size: &str,
) -> Result<(u64, u64)> {
    let device = Loop::attach(image, offset, length, 512, false)?;
    let name = device.device().display().to_string();
    let run = |arguments: &[&str]| lvm::run(&[&name], arguments);
    run(&["pvcreate", "-q", &name])?;
    run(&["vgcreate", "-q", group, &name])?;
    for (volume, size) in [("swap", "4M"), ("root", size)] {
        run(&[
            "lvcreate", "-q", "-an", "-Zn", "-Wn", "-n", volume, "-L", size, group,
        ])?;
    }
    let volume = format!("{group}/root");
    let places = lvm::Places::of(
        &volume,
        0,
        std::slice::from_ref(&name),
        &[image.to_path_buf()],
        &run,
    )?;
    let (_, at, length) = places.one_run().context("root is in pieces")?;
    Ok((offset + at, length))
}

fn format_root(image: &Path, offset: u64, size: u64, mkfs: &str) -> Result<()> {
    let device = Loop::attach(image, offset, size, 512, false)?;
    let force = if mkfs == "mkfs.xfs" { "-f" } else { "-F" };
    Cmd::new(mkfs)
        .args(["-q", force])
        .arg(device.device())
        .ok()
        .map(drop)
}
