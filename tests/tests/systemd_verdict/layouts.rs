//! The ways in which people's kubelets are started, and the corners of systemd's rules.

use rescue::guest::Guest;
use rescue::tree::MemoryTree;

/// One file of a layout.
#[derive(Debug, Clone)]
pub enum Entry {
    /// A regular file.
    Bytes(Vec<u8>),
    /// A symbolic link.
    Link(String),
}

/// Files that are laid over the base system before a unit is started.
#[derive(Debug, Clone)]
pub struct Layout {
    /// A file name.
    pub name: String,
    /// The unit to start.
    pub unit: String,
    /// What stands for `kubelet` in all of its names and files.
    pub short: String,
    /// Path (without the first slash) and content.
    pub files: Vec<(String, Entry)>,
}

/// Files that are there in every layout: the specifiers speak of them.
pub const BASE: [(&str, &str); 3] = [
    ("etc/hostname", "verdict.example\n"),
    ("etc/machine-id", "48ac18b487514229975ebcbf998b9997\n"),
    (
        "etc/os-release",
        "ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Verdict\"\n",
    ),
];

impl Layout {
    fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            unit: "kubelet.service".to_owned(),
            short: "kubelet".to_owned(),
            files: Vec::new(),
        }
    }

    fn file(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.files
            .push((path.to_owned(), Entry::Bytes(content.as_ref().to_vec())));
        self
    }

    fn link(mut self, path: &str, target: &str) -> Self {
        self.files
            .push((path.to_owned(), Entry::Link(target.to_owned())));
        self
    }

    /// The vendor's unit.
    fn vendor(self) -> Self {
        self.file("usr/lib/systemd/system/kubelet.service", UNIT)
    }

    /// The vendor's unit and kubeadm's drop-in beside it.
    fn packaged(self) -> Self {
        let extra = "etc/default/kubelet";
        self.vendor()
            .file(&format!("{USR}/10-kubeadm.conf"), kubeadm(extra))
            .file("var/lib/kubelet/kubeadm-flags.env", FLAGS)
    }

    /// The vendor's unit with a drop-in of these lines.
    fn service(self, lines: &str) -> Self {
        self.vendor().file(
            &format!("{ETC}/20-site.conf"),
            format!("[Service]\n{lines}"),
        )
    }

    /// The same with `k007` for `kubelet` everywhere, so that all layouts fit into one system
    /// without touching each other.
    pub fn numbered(&self, number: usize) -> Self {
        let short = format!("k{number:03}");
        let bytes = |bytes: &[u8]| replace(bytes, b"kubelet", short.as_bytes());
        let files = self.files.iter().map(|(path, entry)| {
            let entry = match entry {
                Entry::Bytes(content) => Entry::Bytes(bytes(content)),
                Entry::Link(target) => Entry::Link(target.replace("kubelet", &short)),
            };
            (path.replace("kubelet", &short), entry)
        });
        Self {
            name: self.name.clone(),
            unit: self.unit.replace("kubelet", &short),
            files: files.collect(),
            short,
        }
    }

    /// Whether its files reach into other layouts' units.
    pub fn is_wide(&self) -> bool {
        self.files
            .iter()
            .any(|(path, _)| path.contains("/service.d/"))
    }

    /// As a guest for the resolver.
    pub fn guest(&self) -> Guest {
        let base = BASE.iter().fold(MemoryTree::new(), |tree, (path, text)| {
            tree.file(format!("/{path}"), text)
        });
        let tree = base.link("/lib", "usr/lib").dir("/usr/lib");
        let all = self
            .files
            .iter()
            .fold(tree, |tree, (path, entry)| match entry {
                Entry::Bytes(bytes) => tree.file(format!("/{path}"), bytes),
                Entry::Link(target) => tree.link(format!("/{path}"), target),
            });
        all.into_guest()
    }
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(&first) = rest.first() {
        if let Some(after) = rest.strip_prefix(from) {
            out.extend_from_slice(to);
            rest = after;
        } else {
            out.push(first);
            rest = &rest[1..];
        }
    }
    out
}

const ETC: &str = "etc/systemd/system/kubelet.service.d";
const USR: &str = "usr/lib/systemd/system/kubelet.service.d";

const UNIT: &str = "[Unit]\nDescription=kubelet: The Kubernetes Node Agent\n\
    Documentation=https://kubernetes.io/docs/\n\
    Wants=network-online.target\nAfter=network-online.target\n\n[Service]\n\
    ExecStart=/usr/bin/kubelet\n\
    Restart=always\nStartLimitInterval=0\nRestartSec=1h\n\n[Install]\nWantedBy=multi-user.target\n";

const FLAGS: &str = "\
    KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/containerd/containerd.sock \
    --pod-infra-container-image=registry.k8s.io/pause:3.9\"\n";

/// kubeadm's own drop-in (release: cmd/krel/templates/latest/kubeadm/10-kubeadm.conf).
fn kubeadm(extra: &str) -> String {
    format!(
        "# Note: This dropin only works with kubeadm and kubelet v1.11+\n[Service]\n\
         Environment=\"KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
         --kubeconfig=/etc/kubernetes/kubelet.conf\"\n\
         Environment=\"KUBELET_CONFIG_ARGS=--config=/var/lib/kubelet/config.yaml\"\n\
         # This is a file that \"kubeadm init\" and \"kubeadm join\" generates at runtime\n\
         EnvironmentFile=-/var/lib/kubelet/kubeadm-flags.env\n\
         EnvironmentFile=-/{extra}\n\
         ExecStart=\n\
         ExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS $KUBELET_CONFIG_ARGS \
         $KUBELET_KUBEADM_ARGS $KUBELET_EXTRA_ARGS\n"
    )
}

/// Packages and installers as they are in the field.
fn field() -> Vec<Layout> {
    vec![
        Layout::new("deb-legacy")
            .vendor()
            .file(&format!("{ETC}/10-kubeadm.conf"), kubeadm("etc/default/kubelet"))
            .file("var/lib/kubelet/kubeadm-flags.env", FLAGS)
            .file("etc/default/kubelet", "KUBELET_EXTRA_ARGS=\n"),
        Layout::new("rpm")
            .vendor()
            .file(&format!("{USR}/10-kubeadm.conf"), kubeadm("etc/sysconfig/kubelet"))
            .file("var/lib/kubelet/kubeadm-flags.env", FLAGS)
            .file("etc/sysconfig/kubelet", "KUBELET_EXTRA_ARGS=\"--fail-swap-on=false \
                --node-ip=10.0.0.5\"\n"),
        Layout::new("pkgs-k8s-io").packaged().file(
            "etc/default/kubelet",
            "KUBELET_EXTRA_ARGS=--node-labels='a=b,c=d' --v=2 # not a comment\n",
        ),
        Layout::new("kubeadm-1.8")
            .file("usr/lib/systemd/system/kubelet.service", UNIT)
            .file(
                &format!("{ETC}/10-kubeadm.conf"),
                "[Service]\n\
                 Environment=\"KUBELET_KUBECONFIG_ARGS=--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \
                 --kubeconfig=/etc/kubernetes/kubelet.conf\"\n\
                 Environment=\"KUBELET_SYSTEM_PODS_ARGS=--pod-manifest-path=/etc/kubernetes/manifests \
                 --allow-privileged=true\"\n\
                 Environment=\"KUBELET_CERTIFICATE_ARGS=--rotate-certificates=true \
                 --cert-dir=/var/lib/kubelet/pki\"\n\
                 ExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_KUBECONFIG_ARGS \
                 $KUBELET_SYSTEM_PODS_ARGS $KUBELET_CERTIFICATE_ARGS $KUBELET_EXTRA_ARGS\n",
            ),
        Layout::new("kubespray")
            .file(
                "etc/systemd/system/kubelet.service",
                "[Unit]\nDescription=Kubernetes Kubelet Server\n\n[Service]\n\
                 EnvironmentFile=-/etc/kubernetes/kubelet.env\n\
                 ExecStart=/usr/local/bin/kubelet \\\n\t\t$KUBE_LOGTOSTDERR \\\n\
                 \t\t$KUBE_LOG_LEVEL \\\n\t\t$KUBELET_API_SERVER \\\n\
                 \t\t$KUBELET_ADDRESS \\\n\t\t$KUBELET_HOSTNAME \\\n\t\t$KUBELET_ARGS\n\
                 Restart=always\nRestartSec=1h\n",
            )
            .file(
                "etc/kubernetes/kubelet.env",
                "# Upstream opts\nKUBE_LOGTOSTDERR=\"--logtostderr=true\"\n\
                 KUBE_LOG_LEVEL=\"--v=2\"\n\
                 KUBELET_ADDRESS=\"--node-ip=10.0.0.5\"\n\
                 KUBELET_HOSTNAME=\"--hostname-override=node1\"\n\n\n\
                 KUBELET_ARGS=\"--bootstrap-kubeconfig=/etc/kubernetes/bootstrap-kubelet.conf \\\n\
                 --config=/etc/kubernetes/kubelet-config.yaml \\\n\
                 --kubeconfig=/etc/kubernetes/kubelet.conf \\\n\
                 --runtime-cgroups=/systemd/system.slice \\\n \"\nKUBELET_CLOUDPROVIDER=\"\"\n\n\
                 PATH=/usr/local/bin:/usr/bin\n",
            ),
        Layout::new("migrated-deb")
            .packaged()
            .file(&format!("{ETC}/10-kubeadm.conf"), kubeadm("etc/sysconfig/kubelet").replace("config.yaml", "old.yaml"))
            .file("etc/default/kubelet", "KUBELET_EXTRA_ARGS=--from-default\n"),
        Layout::new("environment-file-override").packaged().file(
            "etc/default/kubelet",
            "KUBELET_KUBECONFIG_ARGS=\"--kubeconfig=/etc/kubernetes/kubelet.conf \
             --bootstrap-kubeconfig=/gone\"\nKUBELET_EXTRA_ARGS='--a=\"b c\"'\n",
        ),
        Layout::new("literal")
            .service("ExecStart=\nExecStart=/usr/bin/kubelet --v=2 --bootstrap-kubeconfig /gone \
                '--x=a b' --kubeconfig=/etc/kubernetes/kubelet.conf\n"),
    ]
}

/// Masking, order and resets.
fn precedence() -> Vec<Layout> {
    vec![
        Layout::new("masked-drop-in-empty")
            .packaged()
            .file(&format!("{ETC}/10-kubeadm.conf"), ""),
        Layout::new("masked-drop-in-null")
            .packaged()
            .link(&format!("{ETC}/10-kubeadm.conf"), "/dev/null"),
        Layout::new("masked-unit-null")
            .packaged()
            .link("etc/systemd/system/kubelet.service", "/dev/null"),
        Layout::new("masked-unit-empty")
            .packaged()
            .file("etc/systemd/system/kubelet.service", ""),
        Layout::new("reset-exec-start").packaged().file(
            &format!("{ETC}/20-site.conf"),
            "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet --site $KUBELET_KUBECONFIG_ARGS\n",
        ),
        Layout::new("lexicographic")
            .packaged()
            .file(
                &format!("{ETC}/05-first.conf"),
                "[Service]\nEnvironment=KUBELET_CONFIG_ARGS=--first KUBELET_EXTRA_ARGS=--first\n",
            )
            .file(
                "usr/local/lib/systemd/system/kubelet.service.d/99-last.conf",
                "[Service]\nEnvironment=KUBELET_CONFIG_ARGS=--local\n",
            )
            .file(
                &format!("{USR}/99-last.conf"),
                "[Service]\nEnvironment=KUBELET_CONFIG_ARGS=--vendor\n",
            )
            .file(
                &format!("{ETC}/a.conf"),
                "[Service]\nEnvironment=KUBELET_KUBEADM_ARGS=--beaten\n",
            )
            .file(
                &format!("{ETC}/b.conf.bak"),
                "[Service]\nExecStart=/nowhere\n",
            )
            .file(&format!("{ETC}/.c.conf"), "[Service]\nExecStart=/nowhere\n"),
        Layout::new("generic-drop-ins")
            .packaged()
            .file(
                "etc/systemd/system/service.d/10-kubeadm.conf",
                "[Service]\nEnvironment=KUBELET_EXTRA_ARGS=--hidden\n",
            )
            .file(
                "etc/systemd/system/service.d/15-all.conf",
                "[Service]\nEnvironment=KUBELET_EXTRA_ARGS=--generic\n",
            ),
        Layout::new("alias")
            .file("usr/lib/systemd/system/kubelet-v1.service", UNIT)
            .link(
                "etc/systemd/system/kubelet.service",
                "../../../usr/lib/systemd/system/kubelet-v1.service",
            )
            .file(
                &format!("{ETC}/10-alias.conf"),
                "[Service]\nEnvironment=A=--alias\nExecStart=\n\
                 ExecStart=/usr/bin/kubelet $A $B $C %n %p %j\n",
            )
            .file(
                "etc/systemd/system/kubelet-v1.service.d/20-own.conf",
                "[Service]\nEnvironment=B=--own\n",
            )
            .file(
                "usr/lib/systemd/system/kubelet-.service.d/30-dash.conf",
                "[Service]\nEnvironment=C=--dash\n",
            ),
        Layout::new("linked-unit")
            .link("etc/systemd/system/kubelet.service", "/opt/kubelet.service")
            .file(
                "opt/kubelet.service",
                "[Service]\nExecStart=/usr/bin/kubelet --linked %n\n",
            ),
        Layout::new("environment-reset").packaged().file(
            &format!("{ETC}/20-site.conf"),
            "[Service]\nEnvironment=\nEnvironment=KUBELET_EXTRA_ARGS=--only\nEnvironmentFile=\n",
        ),
        Layout::new("unset").packaged().file(
            &format!("{ETC}/20-site.conf"),
            "[Service]\nUnsetEnvironment=KUBELET_CONFIG_ARGS KUBELET_EXTRA_ARGS=other\n\
             Environment=KUBELET_EXTRA_ARGS=stays\n",
        ),
        Layout::new("environment-file-glob")
            .packaged()
            .file(
                &format!("{ETC}/20-site.conf"),
                "[Service]\nEnvironmentFile=/etc/kubelet.d/[0-9]?-*.env\n\
                 EnvironmentFile=\"/etc/kubelet-quoted.env\"\nEnvironmentFile=relative.env\n",
            )
            .file("etc/kubelet.d/20-b.env", "KUBELET_EXTRA_ARGS=--b\n")
            .file(
                "etc/kubelet.d/10-a.env",
                "KUBELET_EXTRA_ARGS=--a\nKUBELET_CONFIG_ARGS=--a\n",
            )
            .file("etc/kubelet.d/none.env", "KUBELET_EXTRA_ARGS=--none\n"),
    ]
}

/// Syntax.
fn syntax() -> Vec<Layout> {
    let template = Layout {
        unit: "kubelet@a-b\\x2dc.service".to_owned(),
        ..Layout::new("template")
            .file(
                "usr/lib/systemd/system/kubelet@.service",
                "[Service]\nExecStart=/usr/bin/kubelet %n|%N|%p|%i|%I|%j|%f|%P $X\n",
            )
            .file(
                "etc/systemd/system/kubelet@.service.d/10.conf",
                "[Service]\nEnvironment=X=--template\n",
            )
    };
    vec![
        template,
        Layout::new("continuation-lines").service(
            "Environment=\"A=one \\\n# a comment between\n   two\" \\\n ; another\n  B=three\n\
             ExecStart=\nExecStart=/usr/bin/kubelet \\\n  $A \\\n# --not\n\n--nor-this\n\
             Environment=C=\\\\\\\\\nEnvironment=D=last \\",
        ),
        Layout::new("continued-arguments").service(
            "Environment=\"A=x   y\"\nExecStart=\nExecStart=/usr/bin/kubelet \\\n  $A \\\n\
             # --not\n   \"$A\" \\\n;--nor\n\tend\\\nless\n",
        ),
        Layout::new("quotes").service(
            "Environment=\"A=double 'single' \\\"escaped\\\"\" 'B=single \"double\"' \
             C=plain\\x20escape D=\"mid\"dle\nExecStart=\n\
             ExecStart=/usr/bin/kubelet \"two words\" 'single \"inside\"' a\"b\"c'd' \"\" '' \
             \\x41\\102\\u00e9\\s\\t\\\" \\q ${A} $A $B ${C} $C ${D}\n",
        ),
        Layout::new("specifiers").service(
            "Environment=A=%n%%\nExecStart=\nExecStart=/usr/bin/kubelet %n %N %p [%i] %j %f %H %l \
             %m %t %S %C %L %E %T %V %u %U %g %G %h %o %w [%W] %a 100%% %-z $A %%n 5%\n",
        ),
        Layout::new("unknown-specifiers").service(
            "Environment=A=1 B=%z C=3\nEnvironmentFile=/etc/%z\nExecStart=\n\
             ExecStart=-/usr/bin/kubelet %z\nExecStart=/usr/bin/kubelet $A ${B} $C\n",
        ),
        Layout::new("variables").service(
            "Environment=\"A=x y\" E=\nExecStart=\nExecStart=/usr/bin/kubelet ${A} $A pre${A}post \
             pre$A $$A $$ a$$b ${NONE} $NONE [${E}] $E $A/x ${A:-z} ${A $ \"$A\" '${A}' %%${A}\n",
        ),
        Layout::new("split-variable").service(
            "Environment='A=a \"b c\" \\'d e\\' f\\\\ g \"open' 'B=--x=\"1 2\" --y'\nExecStart=\n\
             ExecStart=/usr/bin/kubelet $A $B\n",
        ),
        Layout::new("prefixes").service(
            "Environment=A=x\nExecStart=\nExecStart=-@:/usr/bin/kubelet argv0 $A ${A} $$\n",
        ),
        Layout::new("privileged-prefix")
            .service("Environment=A=x\nExecStart=\nExecStart=+/usr/bin/kubelet $A\n"),
        Layout::new("relative-program").service("ExecStart=\nExecStart=kubelet --from-path\n"),
        Layout::new("oneshot").service(
            "Type=oneshot\nRestart=no\nExecStart=/usr/bin/kubelet second ; /usr/bin/kubelet third \
             \\; ;x ;\nExecStart=/usr/bin/kubelet fourth\n",
        ),
        Layout::new("environment-file-syntax")
            .service(
                "EnvironmentFile=/etc/kubelet-odd.env\nExecStart=\n\
                 ExecStart=/usr/bin/kubelet [${A}] [${B}] [${C}] [${D}] [${E}] [${F}] [${G}] \
                 [${H}] [${I}] [${J}] [${K}]\n",
            )
            .file(
                "etc/kubelet-odd.env",
                "A = spaced out  \nB=\"a\\tb\\\"c\\$d\\`e\"\nC='single \\n'\nD=con\\\ntinued\n\
                 E=\"multi\nline\"\n; comment\n# comment\nF=a'b'c\nG=\"x\" \"y\" z\n\
                 export H=no\n1I=no\nI=\\ x\\ \\ny\nJ=\n  K=indented # kept",
            ),
        Layout::new("environment-words").service(
            "Environment=A=1 \"B=2 3\" 9C=no D E=4 \"unbalanced\nEnvironment=F=5 G=\\q H=6\n\
             Environment=I=%n I=%N\nExecStart=\nExecStart=/usr/bin/kubelet [${A}] [${B}] [${D}] \
             [${E}] [${F}] [${G}] [${H}] [${I}]\n",
        ),
        Layout::new("crlf").service(
            "Environment=A=x\r\nExecStart=\r\nExecStart=/usr/bin/kubelet $A \\\r\n  end\r\n",
        ),
        Layout::new("sections-and-case").service(
            "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet $A $B $C\n[X-Other]\n\
             Environment=A=--ignored\n[Unit]\nEnvironment=B=--ignored\n  [Service]  \n  \
             Environment = A=--kept  \nenvironment=C=--case\nno equals sign\n",
        ),
        Layout::new("byte-order-mark").vendor().file(
            &format!("{ETC}/20.conf"),
            "\u{feff}[Service]\nExecStart=\nExecStart=/usr/bin/kubelet --bom\n",
        ),
    ]
}

/// What systemd refuses, and where it stops reading.
fn refusals() -> Vec<Layout> {
    let latin1 = [b"[Service]\nEnvironment=A=before\nExecStart=\nExecStart=/usr/bin/kubelet $A $B\n# Gr\xfc\xdfe\nEnvironment=B=\xfc\nEnvironment=A=after\n".as_slice()].concat();
    vec![
        Layout::new("two-commands").service("ExecStart=/usr/bin/kubelet second\n"),
        Layout::new("no-command").service("ExecStart=\n"),
        Layout::new("missing-environment-file").service("EnvironmentFile=/etc/nowhere\n"),
        Layout::new("bad-drop-in")
            .service(
                "Environment=A=before\nExecStart=\nExecStart=relative/path\nEnvironment=A=after\n\
                 ExecStart=/usr/bin/kubelet $A\n",
            )
            .file(
                &format!("{ETC}/30.conf"),
                "[Service]\nExecStart=/usr/bin/kubelet next $A\n",
            ),
        Layout::new("unbalanced-drop-in").service(
            "ExecStart=/usr/bin/kubelet 'open\nExecStart=\nExecStart=/usr/bin/kubelet after\n",
        ),
        Layout::new("bad-specifier").service(
            "ExecStart=\nExecStart=/usr/bin/kubelet %z\nExecStart=/usr/bin/kubelet after\n",
        ),
        Layout::new("bad-section")
            .service("Environment=A=x\n[Broken\nExecStart=/usr/bin/kubelet second\n"),
        Layout::new("not-utf8")
            .vendor()
            .file(&format!("{ETC}/20.conf"), latin1),
        Layout::new("bad-unit").file(
            "etc/systemd/system/kubelet.service",
            "[Service]\nExecStart=/usr/bin/kubelet 'open\n",
        ),
    ]
}

/// All layouts.
pub fn all() -> Vec<Layout> {
    [field(), precedence(), syntax(), refusals()].concat()
}
