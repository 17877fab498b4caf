//! Options of what a guest may reach: the network, and files of the host.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use flashpan::api::{Config, HostIpMapping, NamedSecret, VolumeMountSpec};
use flashpan::launch::SecretSource;
use flashpan::policy::{Pattern, PatternError};
use flashpan::script::MAX_SOURCE;
use flashpan::{ClientCertificate, Launch, Network};

use crate::environment;
use crate::failure::{Failure, say};
use crate::given::Given;
use crate::parse;
use crate::secrets::{self, PlaceArgs, SourceArgs};

/// Options that become fields of a configuration, whether this version obeys these
/// or refuses them. Hidden is what it refuses.
#[derive(Debug, Args)]
#[command(next_help_heading = "The VM")]
pub(crate) struct ReachArgs {
    /// What the guest may reach: `sealed` (what --allow-host and --rule allow), `open`
    /// (the internet; addresses of the host and of its networks only with
    /// --allow-private-ips, or by --allow-host) or `none` (there is no network card).
    #[arg(
        long,
        value_name = "none|sealed|open",
        default_value_t,
        env = "FLASHPAN_NETWORK",
        hide_env_values = true
    )]
    pub(crate) network: Network,

    /// Let the guest reach addresses that are not of the internet as well: those of the
    /// host and of its networks. Metadata services of clouds have to be named by
    /// --allow-host all the same.
    #[arg(long)]
    allow_private_ips: bool,

    /// Most bytes that pass the network card in a second, in each direction for itself,
    /// e.g. 10M; a plain number is bytes. After a rest as much passes at once.
    #[arg(long, value_name = "SIZE[/s]", value_parser = parse::bytes_per_second,
          env = "FLASHPAN_NETWORK_BPS", hide_env_values = true)]
    pub(crate) network_bps: Option<u64>,

    /// No network at all.
    #[arg(long, conflicts_with_all = ["allow_hosts", "tcp", "rules", "secrets", "network_intercept"])]
    no_network: bool,

    /// A host that the guest may reach: a name, a pattern of names (`*.example.com`), an
    /// address or a network, with or without ports (`example.com:443`), by UDP with `udp:`
    /// before it; may be repeated, and be a list with commas.
    #[arg(
        long = "allow-host",
        value_name = "HOST[:PORT]",
        value_delimiter = ',',
        env = "FLASHPAN_ALLOW_HOST",
        hide_env_values = true
    )]
    allow_hosts: Vec<String>,

    /// The same for one port of a host.
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',', value_parser = with_port)]
    tcp: Vec<String>,

    /// A host that the guest may not reach, whatever else allows it; as --allow-host.
    #[arg(long = "deny-host", value_name = "HOST[:PORT]", value_delimiter = ',')]
    deny_hosts: Vec<String>,

    /// A rule for requests, e.g. `allow GET,HEAD api.example.com/repos/**` or `deny POST
    /// *.example.com`; may be repeated: the first one counts that means a request, and
    /// --allow-host what none means.
    #[arg(long = "rule", value_name = "RULE")]
    rules: Vec<String>,

    /// A file with a script that may deny requests and connections of those that all else
    /// allows (docs/policy-script.md).
    #[arg(long, value_name = "FILE")]
    policy_script: Option<PathBuf>,

    /// A line for the guest's /etc/hosts; may be repeated.
    #[arg(long = "add-host", value_name = "HOST:IP", value_delimiter = ',')]
    add_hosts: Vec<HostIpMapping>,

    /// A secret for some hosts, which can then be reached: programs have a placeholder in
    /// the variable NAME, in whose place the value comes in requests to these hosts. A host
    /// without a port can be reached on ports 443 and 80. Without a value it is that of your
    /// variable of that name; may be repeated.
    // The text of an error of clap's would show the value.
    #[arg(long = "secret", value_name = "NAME[=VALUE]@HOST[,HOST]")]
    secrets: Vec<String>,

    #[command(flatten)]
    secret_sources: SourceArgs,

    #[command(flatten)]
    secret_places: PlaceArgs,

    /// Run the commands of --secret-command again this often while the VM runs, e.g. 30m;
    /// otherwise they are run when it starts. Files of --secret-file are read again when
    /// they change.
    #[arg(long, value_name = "DURATION", value_parser = parse::duration)]
    pub(crate) secret_refresh: Option<Duration>,

    /// A name server to ask in place of this machine's own; may be repeated, and be a list
    /// with commas.
    #[arg(long, value_name = "IP", value_delimiter = ',')]
    dns_servers: Vec<IpAddr>,

    /// Take `Range` out of requests to hosts of secrets, so that none of them can be asked
    /// for a value part by part.
    #[arg(long)]
    secret_no_range: bool,

    /// Pass on TLS as it is to hosts that no secret and no rule for requests is for, after its
    /// name was looked at: for programs that trust only their host's own authority.
    /// Otherwise all TLS is looked into as soon as there is a secret.
    #[arg(long, conflicts_with = "network_intercept")]
    splice: bool,

    /// Leave values of secrets in what their hosts answer: a guest that has a host say back
    /// what it sent knows the value.
    #[arg(long)]
    no_scrub: bool,

    /// Give each name an address of its own, so that connections on all ports are decided
    /// by name.
    #[arg(long)]
    dns_synthetic: bool,

    /// Largest packet of the network, 576 to 65520 bytes; 1500 otherwise.
    #[arg(long, value_name = "BYTES",
          value_parser = clap::value_parser!(u32).range(1..))]
    mtu: Option<u32>,

    /// A file with authorities, in PEM, that hosts are verified by besides those that this
    /// machine trusts, where TLS is looked into; may be repeated.
    #[arg(long = "upstream-ca", value_name = "FILE")]
    pub(crate) upstream_ca_files: Vec<PathBuf>,

    /// A certificate for hosts that ask for one, from a file in PEM, and its key, if that is in
    /// another one: the guest has neither. It allows no host; may be repeated.
    #[arg(long = "client-cert", value_name = "HOST[,HOST]=FILE[,KEYFILE]")]
    pub(crate) client_certificates: Vec<ClientCertificate>,

    /// Look into HTTP and HTTPS even if nothing else asks for it.
    #[arg(long)]
    network_intercept: bool,

    /// A directory or file of the host; may be repeated.
    #[arg(
        long = "volume",
        short = 'v',
        value_name = "HOST:GUEST[:ro]",
        hide = true
    )]
    volumes: Vec<String>,

    /// Where the directories of the host are in the guest.
    #[arg(long, value_name = "DIR", requires = "volumes", hide = true)]
    workspace: Option<String>,
}

impl ReachArgs {
    /// Those that were given.
    pub(crate) fn given(&self) -> Given {
        let mut given = Given::default();
        for (is_given, option) in [
            (self.no_network, "--no-network"),
            (self.network_bps.is_some(), "--network-bps"),
            (self.allow_private_ips, "--allow-private-ips"),
            (self.mtu.is_some(), "--mtu"),
            (self.dns_synthetic, "--dns-synthetic"),
            (self.secret_no_range, "--secret-no-range"),
            (self.splice, "--splice"),
            (self.no_scrub, "--no-scrub"),
            (self.policy_script.is_some(), "--policy-script"),
            (self.network_intercept, "--network-intercept"),
            (!self.upstream_ca_files.is_empty(), "--upstream-ca"),
            (!self.client_certificates.is_empty(), "--client-cert"),
            (self.workspace.is_some(), "--workspace"),
        ] {
            given.add(is_given, option);
        }
        // Those of --tcp are looked at when they are parsed.
        let allowed: Vec<_> = self.allowed().iter().chain(&self.tcp).collect();
        given.add_list(&allowed, "--allow-host");
        given.add_list(&self.deny_hosts, "--deny-host");
        given.add_list(&self.rules, "--rule");
        given.add_list(&self.add_hosts, "--add-host");
        given.add_list(&self.dns_servers, "--dns-servers");
        // Of a secret no more than its name is shown.
        let secrets = self.secrets.iter().filter_map(|text| {
            let secret: NamedSecret = text.parse().ok()?;
            Some((secret.name.clone(), secret.name))
        });
        given.add_map(secrets, "--secret");
        let workspace = self.workspace.as_deref().unwrap_or_default();
        let volumes = self.volumes.iter().filter_map(|text| {
            let volume = VolumeMountSpec::parse(text, workspace).ok()?;
            Some((volume.guest_path, text.clone()))
        });
        given.add_map(volumes, "--volume");
        given
    }

    /// The hosts of --allow-host, but not those of its variable where an option says that
    /// there is no network.
    fn allowed(&self) -> &[String] {
        let is_variable = |option| environment::variable_of(option).is_some();
        let none = self.network == Network::None && !is_variable("--network");
        match none && is_variable("--allow-host") {
            true => &[],
            false => &self.allow_hosts,
        }
    }

    /// Sets what was asked for.
    pub(crate) fn apply_to(
        &self,
        config: &mut Config,
    ) -> Result<BTreeMap<String, SecretSource>, Failure> {
        let network = config.network.get_or_insert_default();
        network.no_network = self.no_network;
        network.allowed_hosts = self.allowed().to_vec();
        (network.allowed_hosts).extend_from_slice(&self.tcp);
        network.denied_hosts.clone_from(&self.deny_hosts);
        network.rules.clone_from(&self.rules);
        if let Some(file) = &self.policy_script {
            network.policy_script = script(file)?;
        }
        network.add_hosts.clone_from(&self.add_hosts);
        network.intercept = self.network_intercept;
        if self.allow_private_ips {
            network.block_private_ips = Some(false);
        }
        network.mtu = self.mtu;
        network.synthetic_names = self.dns_synthetic;
        network.forbid_range = self.secret_no_range;
        network.splice = self.splice;
        if self.no_scrub {
            network.scrub = Some(false);
        }
        network.dns_servers = self.dns_servers.iter().map(ToString::to_string).collect();
        let secrets = secrets::with_hosts(&self.secrets, &self.secret_sources)?;
        network.secrets.extend(secrets.secrets);
        self.secret_places.apply_to(&mut network.secrets)?;
        if self.volumes.is_empty() {
            return Ok(secrets.sources);
        }
        let workspace = self.workspace.as_deref().ok_or_else(|| {
            Failure::new(
                "--volume: guests see no files of the host in this version; use --disk, or \
                 `flashpan cp` into a VM that stays",
            )
        })?;
        let vfs = config.vfs.get_or_insert_default();
        workspace.clone_into(&mut vfs.workspace);
        for text in &self.volumes {
            let volume = VolumeMountSpec::parse(text, workspace)
                .map_err(|e| Failure::new(format!("invalid volume mount \"{text}\": {e}")))?;
            let mount = volume.mount().ok_or_else(|| {
                Failure::new(format!(
                    "invalid volume mount \"{text}\": its path is not UTF-8"
                ))
            })?;
            vfs.mounts.insert(volume.guest_path, mount);
        }
        Ok(secrets.sources)
    }
}

/// Says to a person what network a VM has.
pub(crate) fn tell(launch: &Launch) {
    if !io::stderr().is_terminal() {
        return;
    }
    let (config, options) = (launch.config(), launch.options());
    let network = config.network.as_ref();
    let is_none = network.is_some_and(|network| network.no_network);
    // As they were written, each once.
    let hosts = network.into_iter().flat_map(|network| {
        let of_secrets = network.secrets.values().flat_map(|secret| &secret.hosts);
        network.allowed_hosts.iter().chain(of_secrets)
    });
    let hosts: Vec<&String> = hosts.collect::<BTreeSet<_>>().into_iter().collect();
    let rules = network
        .map(|network| network.rules.len())
        .unwrap_or_default();
    let what = match (options.network, hosts.as_slice()) {
        (Network::None, _) => "none".to_owned(),
        _ if is_none => "none".to_owned(),
        (Network::Open, _) => "open: every public address that is not denied".to_owned(),
        (_, []) if rules == 0 => {
            "sealed: nothing can be reached; --allow-host HOST or --network open".to_owned()
        }
        (_, []) => format!("sealed: what {rules} rules allow"),
        (_, [host]) => format!("sealed: {host} can be reached"),
        (_, [host, ..]) => format!("sealed: {host} and {} more can be reached", hosts.len() - 1),
    };
    say("network", &what);
}

/// The script in a file. What is too long for one is not read to its end.
fn script(file: &Path) -> Result<String, Failure> {
    let failed = |why: &dyn std::fmt::Display| {
        let file = file.display();
        Failure::new(format!(
            "--policy-script: cannot read {file}: {why}; name a file with a script"
        ))
    };
    let open = File::open(file).map_err(|error| failed(&error))?;
    let mut text = String::new();
    // One byte more, so that it is too long.
    let read = open.take(MAX_SOURCE as u64 + 1).read_to_string(&mut text);
    read.map_err(|error| failed(&error))?;
    match text.trim().is_empty() {
        true => Err(failed(&"there is nothing in it")),
        false => Ok(text),
    }
}

/// A host with its port.
fn with_port(text: &str) -> Result<String, String> {
    let pattern: Pattern = text
        .parse()
        .map_err(|error: PatternError| error.to_string())?;
    match pattern.has_ports() {
        true => Ok(text.to_owned()),
        false => Err("name its port, as in db.example.com:5432".to_owned()),
    }
}
