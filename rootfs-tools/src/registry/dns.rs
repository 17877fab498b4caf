//! Names to addresses, without libc: a statically linked program cannot load
//! what libc resolves names with. `/etc/hosts` and `/etc/resolv.conf` are read.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, ResolverConfig};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use reqwest::dns::{Name, Resolve, Resolving};

/// A name that cannot be resolved.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{why}")]
pub(super) struct Failure {
    pub(super) why: String,
    /// The name does not exist; asking again will not help.
    pub(super) definite: bool,
}

/// Resolves names. The system's files are read at the first name.
#[derive(Clone, Default)]
pub(super) struct Resolver {
    state: Arc<OnceLock<Result<State, Failure>>>,
}

struct State {
    resolver: TokioResolver,
    /// What is wrong with the system's files: then only `/etc/hosts` counts.
    /// There is no server to fall back to that the user has not chosen.
    unconfigured: Option<String>,
}

impl State {
    fn new() -> Result<Self, Failure> {
        let (mut builder, unconfigured) = match TokioResolver::builder_tokio() {
            Ok(builder) => (builder, None),
            Err(error) => {
                let none = ResolverConfig::from_parts(None, Vec::new(), Vec::new());
                let provider = TokioRuntimeProvider::default();
                let builder = TokioResolver::builder_with_config(none, provider);
                (builder, Some(format!("/etc/resolv.conf: {error}")))
            }
        };
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        let resolver = builder.build().map_err(|error| Failure {
            why: error.to_string(),
            definite: true,
        })?;
        Ok(Self {
            resolver,
            unconfigured,
        })
    }

    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, Failure> {
        match self.resolver.lookup_ip(name).await {
            Ok(found) => Ok(found.iter().collect()),
            Err(error) => Err(self.explain(&error)),
        }
    }

    fn explain(&self, error: &NetError) -> Failure {
        if let Some(why) = &self.unconfigured {
            return Failure {
                why: why.clone(),
                definite: true,
            };
        }
        if error.is_nx_domain() {
            return Failure {
                why: "the name does not exist; check the spelling".to_owned(),
                definite: true,
            };
        }
        if error.is_no_records_found() {
            return Failure {
                why: "the name has no addresses".to_owned(),
                definite: true,
            };
        }
        Failure {
            why: format!("{error}; is the name server of /etc/resolv.conf reachable?"),
            definite: false,
        }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let state = self.state.clone();
        Box::pin(async move {
            let state = state
                .get_or_init(State::new)
                .as_ref()
                .map_err(Clone::clone)?;
            let found = state.resolve(name.as_str()).await?;
            // Port 0: that of the URL.
            let addresses = found.into_iter().map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(addresses) as reqwest::dns::Addrs)
        })
    }
}
