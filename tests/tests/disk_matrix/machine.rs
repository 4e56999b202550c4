//! A layout made real: image files, and what of them is mounted where.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tests::command::Cmd;
use tests::fixtures::unpack_small_control_plane;
use tests::mounts::{Loop, Mounted, in_private_namespace, wait_until_free};

use crate::layouts::{Layout, Mount};
use crate::path_text;

/// Where a file system lies.
#[derive(Debug, Clone)]
pub struct Place {
    pub image: PathBuf,
    pub offset: u64,
    pub size: u64,
    pub sector: u64,
}

impl Place {
    fn attach(&self, read_only: bool) -> Result<Loop> {
        Loop::attach(&self.image, self.offset, self.size, self.sector, read_only)
    }
}

pub struct Machine {
    pub images: Vec<PathBuf>,
    places: Vec<Place>,
}

impl Machine {
    pub fn make(layout: &Layout, folder: &Path) -> Result<Self> {
        let places = (layout.build)(folder)?;
        let mut images: Vec<PathBuf> = Vec::new();
        for place in &places {
            if !images.contains(&place.image) {
                images.push(place.image.clone());
            }
        }
        let machine = Self { images, places };
        machine.make_subvolumes(layout)?;
        // Bind mounts are the guest's own; what they show is put in its real place.
        machine.with_mounts(layout, false, false, |root| {
            unpack_small_control_plane(root)?;
            fs::write(root.join("etc/fstab"), layout.fstab)?;
            (layout.arrange)(root)?;
            if layout.power_cut {
                // What was written is in the log alone.
                Cmd::new("xfs_io")
                    .args(["-x", "-c", "syncfs", "-c", "shutdown -f"])
                    .arg(root)
                    .ok()?;
            }
            Ok(())
        })?;
        if let Some(image) = machine.images.first() {
            (layout.damage)(image)?;
        }
        Ok(machine)
    }

    /// Where its file systems lie.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    fn make_subvolumes(&self, layout: &Layout) -> Result<()> {
        let Some((place, names, default)) = &layout.subvolumes else {
            return Ok(());
        };
        let place = self.places.get(*place).context("no such place")?;
        let top = tempfile::tempdir()?;
        in_private_namespace(|| {
            let device = place.attach(false)?;
            let mount = Mounted::mount(device.device(), top.path(), "subvolid=5")?;
            for name in *names {
                let path = top.path().join(name);
                fs::create_dir_all(path.parent().context("no folder")?)?;
                Cmd::new("btrfs")
                    .args(["subvolume", "create"])
                    .arg(&path)
                    .ok()?;
            }
            if let Some(default) = default {
                Cmd::new("btrfs")
                    .args(["subvolume", "set-default"])
                    .arg(top.path().join(default))
                    .ok()?;
            }
            mount.unmount()
        })
    }

    pub fn copy(&self, folder: &Path) -> Result<Self> {
        fs::create_dir(folder)?;
        let to = |image: &Path| {
            Ok::<_, anyhow::Error>(folder.join(image.file_name().context("no name")?))
        };
        for image in &self.images {
            Cmd::new("cp")
                .args(["--sparse=always"])
                .arg(image)
                .arg(to(image)?)
                .ok()?;
        }
        let images = self
            .images
            .iter()
            .map(|image| to(image))
            .collect::<Result<_>>()?;
        let places = self.places.iter().map(|place| {
            Ok(Place {
                image: to(&place.image)?,
                ..place.clone()
            })
        });
        Ok(Self {
            images,
            places: places.collect::<Result<_>>()?,
        })
    }

    /// As the guest has it after its next boot.
    pub fn mounted<T: Send>(
        &self,
        layout: &Layout,
        read_only: bool,
        work: impl FnOnce(&Path) -> Result<T> + Send,
    ) -> Result<T> {
        self.with_mounts(layout, read_only, true, work)
    }

    fn with_mounts<T: Send>(
        &self,
        layout: &Layout,
        read_only: bool,
        with_binds: bool,
        work: impl FnOnce(&Path) -> Result<T> + Send,
    ) -> Result<T> {
        let folder = tempfile::Builder::new().prefix("rescue-guest-").tempdir()?;
        let root = folder.path();
        let result = in_private_namespace(|| {
            let devices = self
                .places
                .iter()
                .map(|place| place.attach(read_only))
                .collect::<Result<Vec<_>>>()?;
            let mut mounts = Vec::new();
            for mount in layout.mounts {
                match mount {
                    Mount::Place(place, at, options) => {
                        let target = root.join(at.trim_start_matches('/'));
                        if !read_only {
                            fs::create_dir_all(&target)?;
                        }
                        let access = if read_only { "ro" } else { "rw" };
                        let options = if options.is_empty() {
                            access.to_owned()
                        } else {
                            format!("{access},{options}")
                        };
                        let device = devices.get(*place).context("no such place")?;
                        mounts.push(Mounted::mount(device.device(), &target, &options)?);
                    }
                    Mount::Bind(from, to) if with_binds => {
                        let at = |path: &str| root.join(path.trim_start_matches('/'));
                        Cmd::new("mount")
                            .arg("--bind")
                            .arg(at(from))
                            .arg(at(to))
                            .ok()?;
                    }
                    Mount::Bind(..) => {}
                }
            }
            let result = work(root);
            // With what is bound below.
            Cmd::new("umount").args(["-R", path_text(root)]).ok()?;
            mounts.into_iter().for_each(std::mem::forget);
            result
        });
        for image in &self.images {
            wait_until_free(image)?;
        }
        result
    }

    /// Every file system by its own checker, read-only.
    pub fn check(&self) -> Result<()> {
        for place in &self.places {
            let device = place.attach(true)?;
            let kind = Cmd::new("blkid")
                .args(["-p", "-o", "value", "-s", "TYPE"])
                .arg(device.device())
                .run()?
                .stdout;
            match kind.trim() {
                "ext2" | "ext3" | "ext4" => Cmd::new("e2fsck")
                    .args(["-f", "-n"])
                    .arg(device.device())
                    .ok()?,
                "xfs" => Cmd::new("xfs_repair").arg("-n").arg(device.device()).ok()?,
                "btrfs" => Cmd::new("btrfs")
                    .args(["check", "--readonly"])
                    .arg(device.device())
                    .ok()?,
                _ => continue,
            };
        }
        self.images
            .iter()
            .try_for_each(|image| wait_until_free(image))
    }
}
