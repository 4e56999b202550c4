//! The kubelet as its unit will start it.

use serde_json::Value;

use super::{Fact, Kubelet, flags};
use crate::base::yaml;
use crate::guest::{Guest, GuestPath};
use crate::systemd::{Unit, words};

/// Reads the unit, its flags and its config.
pub(super) fn read(guest: &Guest) -> Kubelet {
    let unit = Unit::load(guest, "kubelet.service");
    let (flags, exact) = unit
        .as_ref()
        .map(|unit| flags_of(&unit.argv()))
        .unwrap_or((Vec::new(), true));
    let path = |name: &str| flag_path(unit.as_ref(), &flags, name, exact);
    let config_path =
        path("--config").or_there(guest, "/var/lib/kubelet/config.yaml", unit.is_none());
    let kubeconfig =
        path("--kubeconfig").or_there(guest, "/etc/kubernetes/kubelet.conf", unit.is_none());
    let cert_dir = match path("--cert-dir") {
        Fact {
            value: Some(value),
            source,
        } => Fact {
            value: Some(value),
            source,
        },
        _ => Fact::known(GuestPath::new("/var/lib/kubelet/pki"), "kubelet's default"),
    };
    let config = config_path
        .value
        .as_ref()
        .and_then(|path| guest.read(path).ok())
        .and_then(|bytes| yaml::parse(&bytes).ok())
        .unwrap_or(Value::Null);
    Kubelet {
        bootstrap_kubeconfig: path("--bootstrap-kubeconfig"),
        unit,
        flags,
        config_path,
        config,
        kubeconfig,
        cert_dir,
    }
}

impl Fact<GuestPath> {
    /// kubeadm's own path, where there is no unit to ask and the file is there.
    fn or_there(self, guest: &Guest, path: &str, applies: bool) -> Self {
        let path = GuestPath::new(path);
        if self.value.is_none() && applies && guest.exists(&path) {
            return Self::known(path, "kubeadm's default");
        }
        self
    }
}

/// Flags of a command line; `false` when it is a shell's line, which is only read approximately.
pub(super) fn flags_of(argv: &[String]) -> (Vec<(String, String)>, bool) {
    let program = argv.first().map(|word| base_name(word)).unwrap_or_default();
    if matches!(program, "sh" | "bash" | "dash")
        && let Some(line) = argv.iter().skip_while(|word| *word != "-c").nth(1)
    {
        let words: Vec<String> = words::split(line, words::Rules::EXPANSION)
            .unwrap_or_default()
            .into_iter()
            .map(|word| word.text)
            .skip_while(|word| base_name(word) != "kubelet")
            .collect();
        return (flags::parse(&words), false);
    }
    (flags::parse(argv.get(1..).unwrap_or_default()), true)
}

fn base_name(word: &str) -> &str {
    word.rsplit('/').next().unwrap_or(word)
}

fn flag_path(
    unit: Option<&Unit>,
    flags: &[(String, String)],
    name: &str,
    exact: bool,
) -> Fact<GuestPath> {
    let Some(unit) = unit else {
        return Fact::unknown("there is no kubelet.service");
    };
    let Some((_, value)) = flags
        .iter()
        .rev()
        .find(|(flag, value)| flag == name && !value.is_empty())
    else {
        return Fact::unknown(format!("kubelet.service starts it without {name}"));
    };
    let origin = unit
        .argv_with_origins()
        .into_iter()
        .rev()
        .find(|(word, _)| {
            word.strip_prefix(name)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        })
        .map(|(_, origin)| origin.to_string());
    let source = match (origin, exact) {
        (Some(origin), _) => format!("{origin} {name}"),
        (None, _) => format!("kubelet.service {name} (in a shell's command line)"),
    };
    Fact::known(GuestPath::new(value), source)
}
