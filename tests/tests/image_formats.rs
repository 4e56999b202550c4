//! Disk images made by the real qemu-img, read by ourselves: every byte as qemu-img itself reads
//! it. Then damaged ones, and those that name files that are nobody's business.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use rescue::base::refusal::Refusal;
use rescue::disk::Disk;
use rescue::disk::given::Given;
use rescue::disk::image::Format;
use rescue::disk::{ReadAt, image};
use tests::Cmd;
use tests::disk::MIB;

/// Small numbers that look random, the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// A folder with a raw disk of 9 MiB and a bit: noise, text that packs well, zeros.
struct Folder(tempfile::TempDir);

const SIZE: u64 = 9 * MIB + 3 * 512;

impl Folder {
    fn new() -> Result<Self> {
        let folder = Self(
            tempfile::Builder::new()
                .prefix("rescue-images-")
                .tempdir()?,
        );
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut bytes = vec![0; usize::try_from(SIZE)?];
        for block in bytes.chunks_mut(10_000) {
            match random.below(3) {
                0 => block.fill_with(|| random.next() as u8),
                1 => block.copy_from_slice(&b"kubelet.service "[..].repeat(625)[..block.len()]),
                _ => {}
            }
        }
        fs::write(folder.at("disk.raw"), bytes)?;
        Ok(folder)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn qemu_img(&self, line: &str) -> Result<()> {
        Cmd::new("qemu-img")
            .args(line.split(' '))
            .dir(self.0.path())
            .ok()
            .map(drop)
    }

    fn qemu_io(&self, image: &str, commands: &[&str]) -> Result<()> {
        let words = commands.iter().flat_map(|command| ["-c", command]);
        Cmd::new("qemu-io")
            .args(words)
            .arg(image)
            .dir(self.0.path())
            .ok()
            .map(drop)
    }

    /// The whole disk, read in pieces of odd lengths, is what qemu-img reads.
    #[track_caller]
    fn compare(&self, name: &str) -> Result<Disk> {
        let disk = Disk::open(&self.at(name)).with_context(|| format!("opening {name}"))?;
        self.qemu_img(&format!("convert -O raw {name} expected.raw"))?;
        let expected = fs::read(self.at("expected.raw"))?;
        ensure!(
            disk.bytes.len() == expected.len() as u64,
            "{name} has {} bytes",
            disk.bytes.len()
        );
        ensure!(read_all(disk.bytes.as_ref())? == expected, "{name} differs");
        let mut random = Random(1);
        for _ in 0..200 {
            let from = random.below(disk.bytes.len());
            let length = random.below(100_000).min(disk.bytes.len() - from);
            let mut piece = vec![0xaa; usize::try_from(length)?];
            disk.bytes.read_exact_at(&mut piece, from)?;
            let from = usize::try_from(from)?;
            ensure!(
                piece == expected[from..from + piece.len()],
                "{name} differs from {from} on"
            );
        }
        let mut piece = [0; 2];
        ensure!(
            disk.bytes
                .read_exact_at(&mut piece, disk.bytes.len() - 1)
                .is_err(),
            "{name}: read past its end"
        );
        Ok(disk)
    }

    /// What is said when the file cannot be opened.
    #[track_caller]
    fn refusal(&self, name: &str) -> Result<Refusal> {
        let error = Disk::open(&self.at(name))
            .map(drop)
            .expect_err("it must be refused");
        error
            .downcast::<Refusal>()
            .with_context(|| format!("{name} was no refusal"))
    }

    fn patch(&self, name: &str, at: u64, bytes: &[u8]) -> Result<()> {
        Ok(File::options()
            .write(true)
            .open(self.at(name))?
            .write_all_at(bytes, at)?)
    }

    /// A big-endian number in a file.
    fn number(&self, name: &str, at: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        File::open(self.at(name))?.read_exact_at(&mut bytes, at)?;
        Ok(u64::from_be_bytes(bytes))
    }
}

fn read_all(disk: &dyn ReadAt) -> Result<Vec<u8>> {
    let mut bytes = vec![0x55; usize::try_from(disk.len())?];
    let mut at = 0;
    for piece in bytes.chunks_mut(333_333) {
        disk.read_exact_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(bytes)
}

#[test]
fn qcow2_in_every_form() -> Result<()> {
    let folder = Folder::new()?;
    for options in [
        "-o compat=0.10",
        "-o compat=1.1",
        "-o compat=1.1,cluster_size=512",
        "-o compat=1.1,cluster_size=2M",
        "-o extended_l2=on",
        "-o extended_l2=on,cluster_size=2M",
        "-o preallocation=metadata",
        "-o preallocation=falloc",
        "-o lazy_refcounts=on,refcount_bits=1",
        "-c",
        "-c -o cluster_size=4k",
        "-c -o compression_type=zstd",
        "-c -o compression_type=zstd,cluster_size=2M",
    ] {
        folder.qemu_img(&format!("convert -O qcow2 {options} disk.raw disk.qcow2"))?;
        folder.compare("disk.qcow2").context(options)?;
    }
    Ok(())
}

/// Written to in places: compressed and plain clusters, zeros, holes that show the file below,
/// parts of clusters.
#[test]
fn qcow2_with_files_below() -> Result<()> {
    let folder = Folder::new()?;
    folder.qemu_img("convert -O qcow2 -c disk.raw base.qcow2")?;
    for (base, format) in [("disk.raw", "raw"), ("base.qcow2", "qcow2")] {
        for options in ["cluster_size=4k", "extended_l2=on", "compat=0.10"] {
            folder.qemu_img(&format!(
                "create -q -f qcow2 -o {options} -b {base} -F {format} middle.qcow2 12M"
            ))?;
            let change = [
                "write -P 7 100k 3k",
                "write -P 8 5M 70k",
                "write -P 9 10M 1k",
            ];
            folder.qemu_io("middle.qcow2", &change)?;
            if options != "compat=0.10" {
                folder.qemu_io("middle.qcow2", &["write -z 1M 200k", "discard 3M 1M"])?;
            }
            folder.qemu_img("create -q -f qcow2 -b middle.qcow2 -F qcow2 top.qcow2")?;
            folder.qemu_io("top.qcow2", &["write -P 10 101k 1k", "write -P 11 4M 64k"])?;
            for image in ["middle.qcow2", "top.qcow2"] {
                folder
                    .compare(image)
                    .with_context(|| format!("{options} over {base}"))?;
            }
        }
    }
    // The state now, not that of the snapshot.
    folder.qemu_img("snapshot -c before top.qcow2")?;
    folder.qemu_io("top.qcow2", &["write -P 12 1k 300k"])?;
    folder.compare("top.qcow2")?;
    // Smaller than what is below it.
    folder.qemu_img("create -q -f qcow2 -b base.qcow2 -F qcow2 small.qcow2 1M")?;
    folder.compare("small.qcow2")?;
    Ok(())
}

#[test]
fn vmdk_in_every_form() -> Result<()> {
    let folder = Folder::new()?;
    for form in [
        "monolithicSparse",
        "monolithicFlat",
        "twoGbMaxExtentSparse",
        "twoGbMaxExtentFlat",
        "streamOptimized",
    ] {
        fs::create_dir(folder.at(form))?;
        folder.qemu_img(&format!(
            "convert -O vmdk -o subformat={form} disk.raw {form}/disk.vmdk"
        ))?;
        let disk = folder.compare(&format!("{form}/disk.vmdk")).context(form)?;
        // Only these hold the disk's bytes in one file as they are.
        let flat = match form {
            "monolithicFlat" => Some("disk-flat.vmdk"),
            "twoGbMaxExtentFlat" => Some("disk-f001.vmdk"),
            _ => None,
        };
        let expected = flat
            .map(|name| folder.at(form).join(name).canonicalize())
            .transpose()?;
        let there = if let image::Layout::Flat(path) = disk.layout {
            Some(path)
        } else {
            None
        };
        assert_eq!(there, expected, "{form}");
    }
    // The bytes themselves, whatever their file's name ends in.
    folder.compare("monolithicFlat/disk-flat.vmdk")?;
    Ok(())
}

/// Extents begin every 2 GiB; most of it are holes.
#[test]
fn vmdk_in_several_extents() -> Result<()> {
    let folder = Folder::new()?;
    for form in ["twoGbMaxExtentSparse", "twoGbMaxExtentFlat"] {
        folder.qemu_img(&format!(
            "create -q -f vmdk -o subformat={form} {form}.vmdk 5G"
        ))?;
        folder.qemu_io(
            &format!("{form}.vmdk"),
            &[
                "write -P 1 2047M 2M",
                "write -P 2 4095M 2M",
                "write -P 3 5119M 1M",
            ],
        )?;
        let disk = Disk::open(&folder.at(&format!("{form}.vmdk")))?;
        assert_eq!(disk.bytes.len(), 5 << 30);
        let mut bytes = vec![0; 4 << 20];
        for (at, expected) in [
            (2046, [0, 1, 1, 0]),
            (4094, [0, 2, 2, 0]),
            (5116, [0, 0, 0, 3]),
        ] {
            disk.bytes.read_exact_at(&mut bytes, at * MIB)?;
            for (piece, expected) in bytes.chunks(1 << 20).zip(expected) {
                assert!(
                    piece.iter().all(|byte| *byte == expected),
                    "{form} at {at} MiB"
                );
            }
        }
    }
    Ok(())
}

/// As VMware's own tools write it when a disk is cut into pieces within one file, and in another
/// order than in the file.
#[test]
fn vmdk_with_several_extents_in_one_file() -> Result<()> {
    let folder = Folder::new()?;
    let half = 9 * MIB / 2 / 512;
    let text = format!(
        "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n\
         createType=\"twoGbMaxExtentFlat\"\n\
         RW {half} FLAT \"disk.raw\" {half}\nRW {half} FLAT \"disk.raw\" 0\n\
         ddb.geometry.cylinders = \"9\"\nddb.geometry.heads = \"16\"\n\
         ddb.geometry.sectors = \"63\"\nddb.adapterType = \"ide\"\n"
    );
    fs::write(folder.at("pieces.vmdk"), text)?;
    let disk = folder.compare("pieces.vmdk")?;
    assert!(
        matches!(disk.layout, image::Layout::Vmdk(_)),
        "only read: {:?}",
        disk.layout
    );
    // The list itself is no part of the disk.
    let text = fs::read_to_string(folder.at("pieces.vmdk"))?.replacen("disk.raw", "pieces.vmdk", 1);
    fs::write(folder.at("pieces.vmdk"), text)?;
    assert!(folder.refusal("pieces.vmdk")?.saw.contains("circle"));
    Ok(())
}

#[test]
fn what_is_not_read_is_named() -> Result<()> {
    let folder = Folder::new()?;
    let convert = |name: &str| {
        format!(
            "qemu-img convert -f qcow2 -O raw {0} {0}.raw",
            folder.at(name).display()
        )
    };
    // As qemu-img marks one whose clusters are LUKS (crypt_method 2); making one takes it seconds.
    folder.qemu_img("create -q -f qcow2 luks.qcow2 4M")?;
    folder.patch("luks.qcow2", 32, &2_u32.to_be_bytes())?;
    let refusal = folder.refusal("luks.qcow2")?;
    assert!(
        refusal.saw.contains("encrypted") && refusal.next.contains(&convert("luks.qcow2")),
        "{refusal}"
    );
    folder.qemu_img("create -q -f qcow2 -o data_file=outside.raw data.qcow2 4M")?;
    assert!(
        folder
            .refusal("data.qcow2")?
            .saw
            .contains("its data is in another file")
    );
    // A snapshot of a running machine in vSphere: the newest file only holds what changed.
    folder.qemu_img("convert -O vmdk disk.raw base.vmdk")?;
    folder.qemu_img("create -q -f vmdk -b base.vmdk -F vmdk node1-000001.vmdk")?;
    let refusal = folder.refusal("node1-000001.vmdk")?;
    assert!(
        refusal.saw.contains("snapshot") && refusal.saw.contains("base.vmdk"),
        "{refusal}"
    );
    let esxi = "# Disk DescriptorFile\nparentCID=12345678\nparentFileNameHint=\"node1.vmdk\"\n\
        createType=\"seSparse\"\n\
        RW 2048 SESPARSE \"node1-000002-sesparse.vmdk\"\n";
    fs::write(folder.at("node1-000002.vmdk"), esxi)?;
    assert!(
        folder
            .refusal("node1-000002.vmdk")?
            .saw
            .contains("ESXi snapshot")
    );
    for format in ["vdi", "vhdx", "vpc"] {
        folder.qemu_img(&format!("convert -O {format} disk.raw disk.{format}"))?;
        let disk = Disk::open(&folder.at(&format!("disk.{format}")))?;
        let probe = rescue::disk::probe::probe(disk.bytes.as_ref())?.context("not recognised")?;
        assert_eq!(probe.content.name(), format!("{format} disk image"));
    }
    Ok(())
}

#[test]
fn marked_images_are_read_and_it_is_said() -> Result<()> {
    let folder = Folder::new()?;
    for (bit, words) in [
        (1_u8, "was not closed by QEMU"),
        (2, "is marked as corrupt"),
    ] {
        folder.qemu_img("convert -O qcow2 disk.raw disk.qcow2")?;
        folder.patch("disk.qcow2", 79, &[bit])?;
        let disk = Disk::open(&folder.at("disk.qcow2"))?;
        assert!(disk.notes[0].contains(words), "{:?}", disk.notes);
        assert!(read_all(disk.bytes.as_ref())? == fs::read(folder.at("disk.raw"))?);
    }
    Ok(())
}

/// The content of a raw disk is the guest's. It must not make us read another file as its disk.
#[test]
fn content_alone_opens_no_other_file() -> Result<()> {
    let folder = Folder::new()?;
    fs::create_dir(folder.at("other"))?;
    fs::rename(folder.at("disk.raw"), folder.at("other/secret.raw"))?;
    folder.qemu_img("create -q -f qcow2 -b other/secret.raw -F raw inside.img")?;
    folder.qemu_img("create -q -f qcow2 plain.img 4M")?;

    // Nothing says that it is an image: a reference is refused, and named.
    let refusal = folder.refusal("inside.img")?;
    assert!(
        refusal.saw.contains("other/secret.raw") && refusal.next.contains("--image-format raw"),
        "{refusal}"
    );
    // Without a reference there is nothing to steal.
    assert_eq!(Disk::open(&folder.at("plain.img"))?.bytes.len(), 4 << 20);
    // Called raw, it is raw, and said to be.
    fs::copy(folder.at("inside.img"), folder.at("called.raw"))?;
    let disk = Disk::open(&folder.at("called.raw"))?;
    assert_eq!(disk.layout, image::Layout::Raw);
    assert!(
        disk.notes[0].contains("begins like a qcow2 image"),
        "{:?}",
        disk.notes
    );
    // The user's word goes above all.
    let open = |name: &str, given: &Given| {
        let path = folder.at(name);
        image::open(&path, Disk::open(&folder.at("called.raw"))?.bytes, given)
    };
    let qcow2 = Given {
        format: Some(Format::Qcow2),
        ..Given::default()
    };
    assert_eq!(open("inside.img", &qcow2)?.bytes.len(), SIZE);
    let vmdk = Given {
        format: Some(Format::Vmdk),
        ..Given::default()
    };
    assert!(open("inside.img", &vmdk).unwrap_err().is::<Refusal>());

    // The name says qcow2, but the file below is somebody else's.
    fs::create_dir(folder.at("vm"))?;
    folder.qemu_img("create -q -f qcow2 -u -b ../other/secret.raw -F raw vm/disk.qcow2 4M")?;
    let refusal = folder.refusal("vm/disk.qcow2")?;
    assert!(
        refusal.saw.contains("outside of its own folder")
            && refusal.next.contains("--image-folder"),
        "{refusal}"
    );
    // Without the format below it, the content of that must not decide either.
    folder.qemu_img("create -q -f qcow2 -u -b called.raw -F raw top.qcow2 4M")?;
    let head = fs::read(folder.at("top.qcow2"))?;
    let extension = head
        .windows(4)
        .position(|word| word == [0xe2, 0x79, 0x2a, 0xca])
        .context("no format there")?;
    folder.patch("top.qcow2", extension as u64, &[0x12; 4])?;
    let refusal = folder.refusal("top.qcow2")?;
    assert!(
        refusal
            .next
            .starts_with("if it is a qcow2 image: qemu-img rebase -u -F qcow2"),
        "{refusal}"
    );
    // A VMware descriptor is nothing but references.
    let text =
        "# Disk DescriptorFile\nparentCID=ffffffff\nRW 2048 FLAT \"../other/secret.raw\" 0\n";
    for (name, words) in [
        ("x.img", "--image-format vmdk"),
        ("x.vmdk", "--image-folder"),
    ] {
        fs::write(folder.at("vm").join(name), text)?;
        let refusal = folder.refusal(&format!("vm/{name}"))?;
        assert!(refusal.next.contains(words), "{refusal}");
    }
    // Names and contents that contradict each other.
    fs::copy(folder.at("plain.img"), folder.at("plain.vmdk"))?;
    assert!(
        folder
            .refusal("plain.vmdk")?
            .next
            .contains("--image-format qcow2")
    );
    Ok(())
}

#[test]
fn a_circle_of_files_below_ends() -> Result<()> {
    let folder = Folder::new()?;
    folder.qemu_img("create -q -f qcow2 -u -b b.qcow2 -F qcow2 a.qcow2 4M")?;
    folder.qemu_img("create -q -f qcow2 -u -b a.qcow2 -F qcow2 b.qcow2 4M")?;
    folder.qemu_img("create -q -f qcow2 self.qcow2 4M")?;
    folder.qemu_img("rebase -u -b self.qcow2 -F qcow2 self.qcow2")?;
    for name in ["a.qcow2", "b.qcow2", "self.qcow2"] {
        assert!(folder.refusal(name)?.saw.contains("goes round in a circle"));
    }
    folder.qemu_img("create -q -f qcow2 1000.qcow2 4M")?;
    folder.qemu_img("create -q -f qcow2 -b 1000.qcow2 -F qcow2 1001.qcow2")?;
    let name_at = folder.number("1001.qcow2", 8)?;
    for number in 1002..1300 {
        let name = format!("{number}.qcow2");
        fs::copy(folder.at("1001.qcow2"), folder.at(&name))?;
        folder.patch(&name, name_at, format!("{}.qcow2", number - 1).as_bytes())?;
    }
    read_all(Disk::open(&folder.at("1200.qcow2"))?.bytes.as_ref())?;
    assert!(
        folder
            .refusal("1299.qcow2")?
            .saw
            .contains("more than 256 files")
    );
    fs::remove_file(folder.at("1100.qcow2"))?;
    let refusal = folder.refusal("1200.qcow2")?;
    assert!(
        refusal.saw.contains("1100.qcow2 cannot be found"),
        "{refusal}"
    );
    Ok(())
}

/// Sizes and offsets of a crafted header. Each is refused when it is opened, or when what it leads
/// to is read.
#[test]
fn crafted_qcow2_headers_are_refused() -> Result<()> {
    let folder = Folder::new()?;
    let be32 = |value: u32| value.to_be_bytes().to_vec();
    let be64 = |value: u64| value.to_be_bytes().to_vec();
    for (at, bytes) in [
        (4, be32(4)),
        (20, be32(0)),
        (20, be32(8)),
        (20, be32(22)),
        (20, be32(u32::MAX)),
        (24, be64(0)),
        (24, be64(u64::MAX)),
        (24, be64(1 << 62)),
        (36, be32(0)),
        (36, be32(u32::MAX)),
        (36, be32(4 << 20)),
        (40, be64(0)),
        (40, be64(1)),
        (40, be64(u64::MAX)),
        (40, be64(1 << 40)),
        (72, be64(1 << 63)),
        (8, be64(u64::MAX)),
    ] {
        folder.qemu_img("convert -O qcow2 disk.raw disk.qcow2")?;
        folder.patch("disk.qcow2", at, &bytes)?;
        if at == 8 {
            folder.patch("disk.qcow2", 16, &be32(10))?;
        }
        folder
            .refusal("disk.qcow2")
            .with_context(|| format!("{bytes:?} at {at}"))?;
    }
    // Tables that point at themselves, at each other, nowhere.
    folder.qemu_img("convert -O qcow2 disk.raw disk.qcow2")?;
    let first = folder.number("disk.qcow2", 40)?;
    let second = folder.number("disk.qcow2", first)? & !(3 << 62);
    for (at, value) in [
        (first, first),
        (first, u64::MAX),
        (first, 512),
        (first, 1 << 50),
        (second, 1 << 50),
        (second, 512),
        (second, (1 << 62) | (1 << 50)),
        (second, u64::MAX),
        (second, (1 << 62) | 5),
    ] {
        folder.qemu_img("convert -O qcow2 disk.raw disk.qcow2")?;
        folder.patch("disk.qcow2", at, &be64(value))?;
        let disk = Disk::open(&folder.at("disk.qcow2"))?;
        let read = read_all(disk.bytes.as_ref());
        ensure!(read.is_err() || value == first, "{value:#x} at {at}");
    }
    Ok(())
}

#[test]
fn images_that_were_cut_off_are_told() -> Result<()> {
    let folder = Folder::new()?;
    for options in [
        "-O qcow2",
        "-O qcow2 -c",
        "-O vmdk",
        "-O vmdk -o subformat=streamOptimized",
    ] {
        let name = if options.contains("vmdk") {
            "disk.vmdk"
        } else {
            "disk.qcow2"
        };
        folder.qemu_img(&format!("convert {options} disk.raw {name}"))?;
        let length = fs::metadata(folder.at(name))?.len();
        for cut in [
            1,
            100,
            511,
            512,
            1000,
            70_000,
            length / 4,
            length / 2,
            length - 70_000,
        ] {
            folder.qemu_img(&format!("convert {options} disk.raw {name}"))?;
            File::options()
                .write(true)
                .open(folder.at(name))?
                .set_len(cut)?;
            let seen = Disk::open(&folder.at(name)).and_then(|disk| read_all(disk.bytes.as_ref()));
            // What is shorter than a magic number is a raw disk of a few bytes.
            ensure!(
                seen.is_err() || cut < 4,
                "{options} cut at {cut} of {length}"
            );
        }
    }
    folder.qemu_img("convert -O vmdk -o subformat=monolithicFlat disk.raw flat.vmdk")?;
    File::options()
        .write(true)
        .open(folder.at("flat-flat.vmdk"))?
        .set_len(SIZE - 512)?;
    assert!(folder.refusal("flat.vmdk")?.saw.contains("cut off"));
    Ok(())
}

/// Whatever is in the tables: no panic, no endless work, no memory worth a word.
#[test]
fn noise_in_the_tables_does_no_harm() -> Result<()> {
    let folder = Folder::new()?;
    let mut random = Random(42);
    let mut opened = 0;
    for options in [
        "-O qcow2",
        "-O qcow2 -c",
        "-O qcow2 -c -o compression_type=zstd",
        "-O qcow2 -o extended_l2=on",
        "-O vmdk",
        "-O vmdk -o subformat=streamOptimized",
    ] {
        let name = if options.contains("vmdk") {
            "disk.vmdk"
        } else {
            "disk.qcow2"
        };
        folder.qemu_img(&format!("convert {options} disk.raw {name}"))?;
        let good = fs::read(folder.at(name))?;
        for _ in 0..40 {
            let mut bad = good.clone();
            for _ in 0..=random.below(6) {
                // The header, and what is not noise in the tables: the more often, the further it
                // gets.
                let within =
                    [104, 512, 4096, 300_000, good.len() as u64][usize::try_from(random.below(5))?];
                let at = usize::try_from(random.below(within.min(good.len() as u64)))?;
                bad[at] = [0, 0xff, 0x80, random.next() as u8][usize::try_from(random.below(4))?];
            }
            fs::write(folder.at(name), &bad)?;
            let Ok(disk) = Disk::open(&folder.at(name)) else {
                continue;
            };
            opened += 1;
            let mut piece = vec![0; 100_000];
            for _ in 0..50 {
                let from = random.below(disk.bytes.len());
                let length = usize::try_from(100_000.min(disk.bytes.len() - from))?;
                let _ = disk.bytes.read_exact_at(&mut piece[..length], from);
            }
        }
    }
    ensure!(opened > 60, "only {opened} could be opened at all");
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("no VmHWM")?;
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    ensure!(peak < 300 << 10, "{peak} KiB of memory");
    Ok(())
}
