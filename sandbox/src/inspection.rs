//! What is looked at, and changed, in the requests of a guest.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use flashpan_network::Inspection;
use flashpan_network::edit::{
    Action, Ask, Edits, Hook, HookSpec, Options, Phase, Places, Secret, Secrets, SocketCallback,
};
use flashpan_network::tls::{Authority, Upstream};
use zeroize::Zeroizing;

use crate::api::{self, HookPhase, NetworkHookAction, NetworkHookRule, NetworkInterceptionConfig};
use crate::client_certificate::ClientCertificate;
use crate::error::{Error, Result};
use crate::pem_file;

/// What they are called in errors.
const AUTHORITIES: &str = "upstream authorities";

/// What of the settings of a network is about requests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inspected {
    /// Whether all requests are looked at, whatever for.
    pub(crate) all: bool,
    pub(crate) interception: Option<NetworkInterceptionConfig>,
    /// By the variable that has the placeholder.
    pub(crate) secrets: BTreeMap<String, api::Secret>,
    /// What the embedder looks at itself.
    pub(crate) hooks: Vec<(Phase, Vec<String>, Ask)>,
    /// Files of authorities that hosts are verified by, besides those of this host.
    pub(crate) upstream_ca_files: Vec<PathBuf>,
    pub(crate) client_certificates: Vec<ClientCertificate>,
    pub(crate) options: Options,
}

/// What looks at requests, and what can be changed of it later.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) inspection: Inspection,
    pub(crate) secrets: Arc<Secrets>,
    /// The certificate that a guest has to trust.
    pub(crate) authority: String,
    /// The placeholders, by the variables that have them.
    pub(crate) placeholders: Vec<(String, String)>,
}

impl Inspected {
    /// Whether any request has to be looked at for it.
    pub(crate) fn is_any(&self) -> bool {
        let rules = self.interception.is_some() || !self.hooks.is_empty();
        let shown = !self.secrets.is_empty() || !self.client_certificates.is_empty();
        self.all || rules || shown
    }

    /// Whether requests to all hosts are looked at for it.
    pub(crate) fn is_of_all(&self) -> bool {
        let is_asked = self.interception.is_some() || !self.secrets.is_empty();
        let interception = self.interception.iter();
        let rules = interception.flat_map(NetworkInterceptionConfig::effective_rules);
        let of_rules = { rules }.any(|rule| rule.hosts.is_empty());
        let of_hooks = self.hooks.iter().any(|(_, hosts, _)| hosts.is_empty());
        self.all || (is_asked && !self.options.splice) || of_rules || of_hooks
    }

    /// Hosts whose requests are looked at.
    pub(crate) fn hosts(&self) -> Vec<String> {
        let of_secrets = self.secrets.values().flat_map(|secret| &secret.hosts);
        let rules = self.interception.iter().flat_map(|of| &of.rules);
        let of_rules = rules.flat_map(|rule| &rule.hosts);
        let of_hooks = self.hooks.iter().flat_map(|(_, hosts, _)| hosts);
        let certificates = self.client_certificates.iter();
        let of_certificates = certificates.flat_map(|certificate| &certificate.hosts);
        let all = of_secrets.chain(of_rules).chain(of_hooks);
        let all = all.chain(of_certificates);
        all.map(|host| host.trim().to_owned()).collect()
    }

    /// Whether all of it makes sense.
    pub(crate) fn check(&self) -> Result<()> {
        self.rules()?;
        Secrets::new(self.secrets()?).map_err(|error| refused(&error))?;
        self.upstream().map(drop)
    }

    pub(crate) fn make(&self) -> Result<Made> {
        let failed = |error: flashpan_network::tls::TlsError| {
            Error::host("make an authority for the guest")(std::io::Error::other(error))
        };
        let authority = Authority::new().map_err(failed)?;
        let secrets = self.secrets()?;
        let placeholders = secrets.iter();
        let placeholders = placeholders
            .map(|secret| (secret.name.clone(), secret.placeholder.clone()))
            .collect();
        let secrets = Arc::new(Secrets::new(secrets).map_err(|error| refused(&error))?);
        let options = Options {
            all: self.all || (self.interception.is_some() && !self.options.splice),
            ..self.options
        };
        let edits = Edits::new(self.rules()?, Arc::clone(&secrets), options);
        Ok(Made {
            authority: authority.pem().to_owned(),
            placeholders,
            inspection: Inspection {
                authority: Arc::new(authority),
                upstream: Arc::new(self.upstream()?),
                editor: Arc::new(edits),
            },
            secrets,
        })
    }

    fn upstream(&self) -> Result<Upstream> {
        let mut extra = Vec::new();
        for path in &self.upstream_ca_files {
            extra.extend_from_slice(&pem_file::read(AUTHORITIES, path)?);
            extra.push(b'\n');
        }
        let clients = self.client_certificates.iter();
        let clients = clients
            .map(ClientCertificate::read)
            .collect::<Result<_>>()?;
        let upstream = Upstream::new(&extra, clients);
        upstream.map_err(|error| Error::config(AUTHORITIES, error.to_string()))
    }

    fn secrets(&self) -> Result<Vec<Secret>> {
        let wrong = |why: String| Error::config("network.secrets", why);
        let mut secrets = Vec::new();
        for (name, secret) in &self.secrets {
            let hosts = secret.hosts.iter().map(|host| host.parse());
            let hosts: std::result::Result<Vec<_>, flashpan_network::policy::PatternError> =
                hosts.collect();
            let hosts = hosts.map_err(|error| wrong(format!("{name}: {error}")))?;
            let value = Zeroizing::new(secret.value.expose().to_owned());
            let placeholder = match secret.placeholder.as_str() {
                "" => {
                    api::Secret::random_placeholder().map_err(Error::host("make a placeholder"))?
                }
                placeholder => placeholder.to_owned(),
            };
            let mut made = Secret::new(name, value, placeholder, hosts);
            made.plain_http = secret.plain_http;
            if !secret.places.is_empty() {
                let places = Places::of(secret.places.iter().map(String::as_str));
                (made.places, made.headers) =
                    places.map_err(|error| wrong(format!("{name}: {error}")))?;
            }
            secrets.push(made);
        }
        Ok(secrets)
    }

    pub(crate) fn rules(&self) -> Result<Vec<Hook>> {
        let wrong = |error: flashpan_network::edit::HookError| {
            Error::config("network.interception", error.to_string())
        };
        let mut rules = Vec::new();
        if let Some(interception) = &self.interception {
            for rule in interception.effective_rules() {
                let spec = spec(&rule, &interception.callback_socket);
                rules.extend(Hook::new(spec).map_err(wrong)?);
            }
        }
        for (phase, hosts, ask) in &self.hooks {
            let spec = HookSpec {
                phase: *phase,
                hosts: hosts.clone(),
                ask: Some(ask.clone()),
                ..HookSpec::default()
            };
            rules.extend(Hook::new(spec).map_err(wrong)?);
        }
        Ok(rules)
    }
}

fn refused(error: &flashpan_network::edit::SecretError) -> Error {
    Error::config("network.secrets", error.to_string())
}

/// A rule of the configuration as the network has it.
fn spec(rule: &NetworkHookRule, socket: &str) -> HookSpec {
    let asks = !rule.callback_id.is_empty() && !socket.is_empty();
    let ask = asks.then(|| {
        let mut ask = Ask::new(Arc::new(SocketCallback {
            path: socket.into(),
            id: rule.callback_id.clone(),
        }));
        if let Some(within) = rule.timeout_ms {
            ask.deadline = Duration::from_millis(within.into());
        }
        ask.fail_open = rule.fail_open;
        ask
    });
    let replacements = rule.body_replacements.iter();
    HookSpec {
        name: rule.name.clone(),
        phase: match rule.phase {
            HookPhase::After => Phase::After,
            _ => Phase::Before,
        },
        hosts: rule.hosts.clone(),
        methods: rule.methods.clone(),
        path: rule.path.clone(),
        action: match rule.action {
            NetworkHookAction::Block => Action::Block,
            _ => Action::Allow,
        },
        ask,
        set_headers: rule.set_headers.clone(),
        delete_headers: rule.delete_headers.clone(),
        set_query: rule.set_query.clone(),
        delete_query: rule.delete_query.clone(),
        rewrite_path: rule.rewrite_path.clone(),
        set_response_headers: rule.set_response_headers.clone(),
        delete_response_headers: rule.delete_response_headers.clone(),
        body_replacements: replacements
            .map(|change| (change.find.clone(), change.replace.clone()))
            .collect(),
    }
}
