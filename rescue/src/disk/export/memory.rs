//! How much memory this process may use.

use std::fs;
use std::path::Path;

/// Bytes: the machine's, or what a control group of ours leaves of it (a container on the helper).
pub(super) fn available() -> u64 {
    let info = rustix::system::sysinfo();
    let machine = (info.totalram as u64).saturating_mul(u64::from(info.mem_unit));
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limits(&groups, Path::new("/sys/fs/cgroup"))
        .into_iter()
        .fold(machine, u64::min)
}

/// The limits of all groups above us, of both versions (cgroups(7)).
fn limits(groups: &str, mounted: &Path) -> Vec<u64> {
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        let (folder, file) = match controllers {
            "" => (mounted.to_path_buf(), "memory.max"),
            one if one.split(',').any(|one| one == "memory") => {
                (mounted.join("memory"), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        for above in Path::new(path.trim_start_matches('/')).ancestors() {
            // "max", or a number too large for any machine: no limit.
            let text = fs::read_to_string(folder.join(above).join(file)).unwrap_or_default();
            found.extend(text.trim().parse::<u64>());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smallest_limit_counts() {
        let folder = tempfile::tempdir().unwrap();
        let put = |path: &str, text: &str| {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("a/memory.max", "1073741824\n");
        put("a/b/memory.max", "max\n");
        put("memory/docker/memory.limit_in_bytes", "536870912\n");
        put("memory/memory.limit_in_bytes", "9223372036854771712\n");
        let version_2 = limits("0::/a/b\n", folder.path());
        assert_eq!(version_2, [1 << 30]);
        let version_1 = limits(
            "5:cpu,cpuacct:/x\n4:memory:/docker\nnonsense\n",
            folder.path(),
        );
        assert_eq!(version_1.into_iter().min(), Some(512 << 20));
        assert!(available() > 0);
    }
}
