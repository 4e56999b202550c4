//! Flags that several sub-commands share, each written down once. argh has no way to put one set of
//! flags into two commands, and shows them in the order of the fields: so a command names the
//! shared ones by their keyword, at their place among its own.

/// Defines the arguments of a sub-command: its own fields stand in `own { … }` as argh takes them,
/// shared ones are named by the keywords below. The order is the order of `--help`.
macro_rules! arguments {
    (@ [$($head:tt)*] [$($fields:tt)*]) => {
        #[derive(argh::FromArgs, Debug)]
        $($head)* { $($fields)* }
    };
    (@ $head:tt [$($fields:tt)*] own { $($own:tt)* } $($rest:tt)*) => {
        arguments! { @ $head [$($fields)* $($own)*] $($rest)* }
    };

    // Disks and folders.
    (@ $head:tt [$($fields:tt)*] machine_disks, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// disks of the powered-off machine
            #[argh(positional)]
            pub src: Vec<std::path::PathBuf>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] etcd_disks, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// disks of control planes, or of the machines that run etcd
            #[argh(positional)]
            pub src: Vec<std::path::PathBuf>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] new_member_disks, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// disks of the machines that are to run etcd: 1, 3, 5 or 7
            #[argh(positional)]
            pub src: Vec<std::path::PathBuf>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] root, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a folder where the guest is mounted, instead of a disk
            #[argh(option)]
            pub root: Vec<std::path::PathBuf>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] roots, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a folder where a guest is mounted, instead of a disk
            #[argh(option)]
            pub root: Vec<std::path::PathBuf>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] one_root, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a folder where a guest is mounted, instead of a disk
            #[argh(option)]
            pub root: Option<std::path::PathBuf>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] data_dir, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a data folder, or a copy of one: what etcd's --data-dir names
            #[argh(option)]
            pub data_dir: Vec<std::path::PathBuf>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] data_dir_for_output, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a data folder, or a copy of one: what etcd's --data-dir names (with --output only)
            #[argh(option)]
            pub data_dir: Vec<std::path::PathBuf>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] one_data_dir, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a data folder, or a copy of one
            #[argh(option)]
            pub data_dir: Option<std::path::PathBuf>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] ca_lenders, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a control-plane disk (or its mounted folder) that is only read, for the CA key on
            /// it; may be given several times
            #[argh(option, from_str_fn(crate::cli::args::source_argument))]
            pub ca: Vec<crate::disk::Source>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] ca_signers, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// the control-plane disk (or its mounted folder) with the CA key; only read
            #[argh(option, from_str_fn(crate::cli::args::source_argument))]
            pub ca: Vec<crate::disk::Source>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] node, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// the node meant, by name or source, where several are found
            #[argh(option)]
            pub node: Option<String>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] one_of_several_nodes, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// the node meant, where several are found
            #[argh(option)]
            pub node: Option<String>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] one_node, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// refuse when more than one system is found
            #[argh(switch, hidden_help)]
            pub one_node: bool,
        ] $($rest)* }
    };

    // What is looked for, and by which clock.
    (@ $head:tt [$($fields:tt)*] now, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// the time that counts as now (RFC 3339), instead of this machine's clock
            #[argh(option, from_str_fn(crate::cli::args::time_argument))]
            pub now: Option<time::OffsetDateTime>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] time_for_now, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// the time that counts as now (RFC 3339)
            #[argh(option, from_str_fn(crate::cli::args::time_argument))]
            pub now: Option<time::OffsetDateTime>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] only, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// only this check; may be given several times
            #[argh(option, from_str_fn(crate::cli::args::check_argument))]
            pub only: Vec<String>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] skip, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// not this check; may be given several times
            #[argh(option, from_str_fn(crate::cli::args::check_argument))]
            pub skip: Vec<String>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] free_target, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// how much must be free, in per cent of bytes, or BYTES,INODES (default 15,5)
            #[argh(
                option,
                from_str_fn(crate::cli::args::free_target_argument),
                default = "crate::settings::FreeTarget::default()",
            )]
            pub free_target: crate::settings::FreeTarget,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] no_fsck, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// do not check the file systems before the first write
            #[argh(switch)]
            pub no_fsck: bool,
        ] $($rest)* }
    };

    // What may be done without a question, and without a proof.
    (@ $head:tt [$($fields:tt)*] yes, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// do not ask
            #[argh(switch)]
            pub yes: bool,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] dry_run, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// show the plan and stop
            #[argh(switch)]
            pub dry_run: bool,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] accept_loss, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// with --yes: writes may be lost as the plan says
            #[argh(switch)]
            pub accept_loss: bool,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] unproven, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// also for databases of etcd 3.6 and later, which has not been proved
            #[argh(switch)]
            pub unproven: bool,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] trust_node, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a node, by name or disk, that is believed what its disk says of itself without
            /// proof: it may then get the cluster's keys; may be given several times
            #[argh(option)]
            pub trust: Vec<String>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] node_name, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// the name of the Node object, where what the disk says of it contradicts itself; with
            /// one node only
            #[argh(option, from_str_fn(node_name_argument))]
            pub node_name: Option<String>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] trust_member, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a node, by name or disk, that is believed to be a member of this etcd without proof;
            /// may be given several times
            #[argh(option)]
            pub trust: Vec<String>,
        ] $($rest)* }
    };

    // What is written, and where.
    (@ $head:tt [$($fields:tt)*] json, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// print one JSON object (schema rescue/v1) instead of text
            #[argh(switch)]
            pub json: bool,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] json_with_answer, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// print one JSON object (schema rescue/v1) instead of text; needs --yes or --dry-run
            #[argh(switch)]
            pub json: bool,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] keep_in, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a folder of this machine where an etcd member is kept for which its disk has no room
            /// beside the new one; undo needs it
            #[argh(option)]
            pub keep_in: Option<std::path::PathBuf>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] output_folder, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// write data folders below this new folder instead of changing the disks
            #[argh(option)]
            pub output: Option<std::path::PathBuf>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] output_file, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// the file to write
            #[argh(option, short = 'o')]
            pub output: std::path::PathBuf,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] force, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// replace the file if it is there
            #[argh(switch)]
            pub force: bool,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] days, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// validity in days, at most to the CA's end (default 365)
            #[argh(option, default = "365", from_str_fn(crate::cli::args::days_argument))]
            pub days: u32,
        ] $($rest)* }
    };

    // The members of a new etcd cluster.
    (@ $head:tt [$($fields:tt)*] members, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a member as etcd's flags name it, NAME=URL; one for each disk, in their order;
            /// without disks only to be written with --output
            #[argh(option, from_str_fn(crate::cli::args::member_argument))]
            pub member: Vec<crate::etcd::operations::rebuild::target::Target>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] dead_members, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// a member of the old cluster, by name or ID, that will never come back as it was; may
            /// be given several times
            #[argh(option)]
            pub declare_dead: Vec<String>,
        ] $($rest)* }
    };
    (@ $head:tt [$($fields:tt)*] bump, $($rest:tt)*) => {
        arguments! { @ $head [$($fields)*
            /// raise the revision by so much (default a billion): watchers of the old cluster must
            /// not take new revisions for ones they know
            #[argh(
                option,
                default = "crate::etcd::operations::rebuild::from_db::BUMP",
                from_str_fn(crate::cli::args::bump_argument),
            )]
            pub bump: i64,
        ] $($rest)* }
    };

    ($(#[$($meta:tt)*])* pub struct $name:ident { $($body:tt)* }) => {
        arguments! { @ [$(#[$($meta)*])* pub struct $name] [] $($body)* }
    };
}
pub(super) use arguments;
