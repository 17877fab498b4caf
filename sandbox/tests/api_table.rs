//! docs/api.md maps every identifier of matchlock's package `api` to something here.
//! What it names is compiled below, and the two lists have to be the same.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeSet;

const TABLE: &str = include_str!("../../docs/api.md");

/// Every identifier of the package, one a line; methods and fields as `Type.Name`.
const IDENTIFIERS: &str = include_str!("api_identifiers.txt");

/// Types, functions, constants and variants.
macro_rules! items {
    ($($path:path),+ $(,)?) => {{
        $( { #[allow(unused_imports)] use $path as _; } )+
        [$(stringify!($path)),+]
    }};
}

/// Methods that have no parameters of their own.
macro_rules! methods {
    ($($path:path),+ $(,)?) => {{
        $( let _ = $path; )+
        [$(stringify!($path)),+]
    }};
}

/// Methods by a call.
macro_rules! calls {
    ($($of:path: $method:ident($($argument:expr),*)),+ $(,)?) => {{
        $( let _ = |value: &$of| drop(value.$method($($argument),*)); )+
        [$(concat!(stringify!($of), "::", stringify!($method))),+]
    }};
}

/// Functions of types by a call.
macro_rules! functions {
    ($($of:path: $function:ident($($argument:expr),*)),+ $(,)?) => {{
        $( let _ = || drop(<$of>::$function($($argument),*)); )+
        [$(concat!(stringify!($of), "::", stringify!($function))),+]
    }};
}

macro_rules! fields {
    ($($of:path: $($field:ident),+;)+) => {{
        $($( let _ = |value: &$of| { let _ = &value.$field; }; )+)+
        [$($(concat!(stringify!($of), "::", stringify!($field))),+),+]
    }};
}

/// What there is, of all that the table names.
fn existing() -> BTreeSet<&'static str> {
    let no_strings: [&str; 0] = [];
    let items = items!(
        flashpan::Error::Blocked,
        flashpan::Error::ConfigInvalid,
        flashpan::Error::HostNotAllowed,
        flashpan::Error::NotFound,
        flashpan::Error::NotRunning,
        flashpan::Error::SecretLeak,
        flashpan::Sandbox,
        flashpan::api::Config,
        flashpan::api::DEFAULT_CPUS,
        flashpan::api::DEFAULT_DISK_SIZE_MB,
        flashpan::api::DEFAULT_DNS_SERVERS,
        flashpan::api::DEFAULT_GRACEFUL_SHUTDOWN_PERIOD,
        flashpan::api::DEFAULT_MEMORY_MB,
        flashpan::api::DEFAULT_NETWORK_MTU,
        flashpan::api::DEFAULT_TIMEOUT_SECONDS,
        flashpan::api::DEFAULT_WORKSPACE,
        flashpan::api::DirectMount,
        flashpan::api::DiskMount,
        flashpan::api::EnvError::FileLine,
        flashpan::api::EnvError::NameEmpty,
        flashpan::api::EnvError::NameInvalid,
        flashpan::api::EnvError::NotSet,
        flashpan::api::EnvError::ReadFile,
        flashpan::api::EnvVar,
        flashpan::api::ErrorCode::AddHostFormat,
        flashpan::api::ErrorCode::AddHostIp,
        flashpan::api::ErrorCode::AddHostName,
        flashpan::api::ErrorCode::PortForwardFormat,
        flashpan::api::ErrorCode::PortInvalid,
        flashpan::api::Event,
        flashpan::api::EventKind::Exec,
        flashpan::api::EventKind::File,
        flashpan::api::EventKind::Network,
        flashpan::api::ExecEvent,
        flashpan::api::ExecOptions,
        flashpan::api::ExecResult,
        flashpan::api::FileEvent,
        flashpan::api::FileInfo,
        flashpan::api::GuestPathError::NotAbsolute,
        flashpan::api::GuestPathError::Outside,
        flashpan::api::HostIpMapping,
        flashpan::api::ImageConfig,
        flashpan::api::MountConfig,
        flashpan::api::MountType::HostFs,
        flashpan::api::MountType::Memory,
        flashpan::api::MountType::Overlay,
        flashpan::api::NamedSecret,
        flashpan::api::NetworkBodyTransform,
        flashpan::api::NetworkConfig,
        flashpan::api::NetworkEvent,
        flashpan::api::NetworkHookCallbackRequest,
        flashpan::api::NetworkHookCallbackResponse,
        flashpan::api::NetworkHookRequestMutation,
        flashpan::api::NetworkHookResponseMutation,
        flashpan::api::NetworkHookRule,
        flashpan::api::NetworkInterceptionConfig,
        flashpan::api::PortForward,
        flashpan::api::PortForwardBinding,
        flashpan::api::Resources,
        flashpan::api::Secret,
        flashpan::api::VfsConfig,
        flashpan::api::VfsHookRule,
        flashpan::api::VfsInterceptionConfig,
        flashpan::api::VolumeError::Format,
        flashpan::api::VolumeError::HostPathNotFound,
        flashpan::api::VolumeError::Option,
        flashpan::api::VolumeError::Resolve,
        flashpan::api::VolumeMountSpec,
        flashpan::api::is_valid_cpu_count,
        flashpan::api::parse_env_file,
        flashpan::api::parse_envs,
        flashpan::api::shell_quote_args,
        flashpan::api::validate_guest_mount,
        flashpan::api::validate_guest_path_within_workspace,
        flashpan::api::validate_vfs_mounts_within_workspace,
        flashpan::api::vcpu_count,
    );
    let methods = methods!(
        flashpan::Error::is_timeout,
        flashpan::Launch::boot,
        flashpan::Sandbox::config,
        flashpan::Sandbox::events,
        flashpan::Sandbox::exec,
        flashpan::Sandbox::id,
        flashpan::Sandbox::kill,
        flashpan::Sandbox::shutdown,
        flashpan::api::Config::from_json,
        flashpan::api::Config::has_vfs_mounts,
        flashpan::api::Config::hostname_or_id,
        flashpan::api::Config::id_or_new,
        flashpan::api::Config::merge,
        flashpan::api::Config::validate,
        flashpan::api::Config::with_defaults,
        flashpan::api::Config::workspace,
        flashpan::api::EventKind::name,
        flashpan::api::HostIpMapping::validate,
        flashpan::api::ImageConfig::compose_command,
        flashpan::api::NetworkConfig::dns_servers_or_default,
        flashpan::api::NetworkConfig::mtu_or_default,
        flashpan::api::Resources::timeout,
        flashpan::api::VfsConfig::workspace,
        flashpan::api::VolumeMountSpec::parse,
    );
    // They take the builder, and are of several kinds of lists.
    type Hook = std::sync::Arc<dyn flashpan::edit::Callback>;
    let _ = |builder: flashpan::SandboxBuilder, hook: Hook| builder.on_request(["a"], hook);
    let _ = |builder: flashpan::SandboxBuilder, hook: Hook| builder.on_response(["a"], hook);
    let of_builder = [
        "flashpan::SandboxBuilder",
        "flashpan::SandboxBuilder::on_request",
        "flashpan::SandboxBuilder::on_response",
    ];
    let calls = calls!(
        flashpan::Sandbox: list_files("/d"),
        flashpan::Sandbox: read_file("/f", 1),
        flashpan::Sandbox: write_file("/f", b"content", flashpan::WriteOptions::new()),
    );
    let functions = functions!(
        flashpan::api::HostIpMapping: parse_all(&no_strings),
        flashpan::api::PortForward: parse_all(&no_strings),
    );
    let fields = fields!(
        flashpan::Process: stderr, stdin, stdout;
        flashpan::api::Config: env, extra_disks, id, image, image_config, launch_entrypoint, network, privileged, resources, vfs;
        flashpan::api::DirectMount: host_path, readonly;
        flashpan::api::DiskMount: guest_mount, host_path, readonly;
        flashpan::api::Event: timestamp;
        flashpan::api::ExecEvent: command, exit_code;
        flashpan::api::ExecOptions: env, user, working_dir;
        flashpan::api::ExecResult: duration, exit_code, stderr, stdout;
        flashpan::api::FileEvent: gid, mode, op, path, size, uid;
        flashpan::api::FileInfo: is_dir, mod_time, mode, name, size;
        flashpan::api::HostIpMapping: host, ip;
        flashpan::api::ImageConfig: cmd, entrypoint, env, user, working_dir;
        flashpan::api::MountConfig: host_path, lower, mount_type, readonly, upper;
        flashpan::api::NetworkBodyTransform: find, replace;
        flashpan::api::NetworkConfig: add_hosts, allowed_hosts, block_private_ips, dns_servers, hostname, intercept, interception, mtu, no_network, policy_script, secrets;
        flashpan::api::NetworkEvent: block_reason, blocked, duration_ms, host, method, request_bytes, response_bytes, status_code, url;
        flashpan::api::NetworkHookCallbackRequest: callback_id, host, is_sse, method, path, phase, query, request_headers, response_headers, status_code;
        flashpan::api::NetworkHookCallbackResponse: action, error, request, response;
        flashpan::api::NetworkHookRequestMutation: headers, path, query;
        flashpan::api::NetworkHookResponseMutation: body_replacements, headers, set_body_base64;
        flashpan::api::NetworkHookRule: action, body_replacements, callback_id, delete_headers, delete_query, delete_response_headers, hosts, methods, name, path, phase, rewrite_path, set_headers, set_query, set_response_headers, timeout_ms;
        flashpan::api::NetworkInterceptionConfig: callback_socket, rules;
        flashpan::api::PortForward: local_port, remote_port;
        flashpan::api::PortForwardBinding: address, local_port, remote_port;
        flashpan::api::Resources: cpus, disk_size_mb, memory_mb, timeout_seconds;
        flashpan::api::Secret: hosts, placeholder, value;
        flashpan::api::VfsConfig: direct_mounts, interception, mounts, workspace;
        flashpan::api::VfsHookRule: action, name, ops, path, phase, timeout_ms;
        flashpan::api::VfsInterceptionConfig: emit_events, rules;
        flashpan::api::VolumeMountSpec: guest_path, host_path, mount_type, readonly;
    );
    let all = items
        .into_iter()
        .chain(methods)
        .chain(calls)
        .chain(of_builder);
    all.chain(functions).chain(fields).collect()
}

/// The cells of the table's rows, without backticks.
fn rows() -> Vec<[&'static str; 3]> {
    let rows = TABLE.lines().filter(|line| line.starts_with("| `"));
    let cells = |row: &'static str| {
        let mut cells = row.split('|').skip(1).map(str::trim);
        [(); 3].map(|()| cells.next().unwrap())
    };
    rows.map(cells).collect()
}

fn code(cell: &str) -> Option<&str> {
    cell.strip_prefix('`')?.strip_suffix('`')
}

#[test]
fn every_identifier_has_a_row_and_there_are_no_others() {
    let named: Vec<_> = rows().iter().map(|row| code(row[0]).unwrap()).collect();
    assert_eq!(named, IDENTIFIERS.lines().collect::<Vec<_>>());
    assert!(named.len() > 250);
}

#[test]
fn what_the_table_names_is_there() {
    let existing = existing();
    let mut named = BTreeSet::new();
    for [identifier, here, note] in rows() {
        match code(here) {
            Some(path) => {
                assert!(existing.contains(path), "{identifier}: there is no {path}");
                named.insert(path);
            }
            None => assert!(note.starts_with("not yet"), "{identifier} is nowhere"),
        }
    }
    assert_eq!(named, existing, "compiled, but not in the table");
}
