//! The devices that report to the host, and to whom they do.

use std::sync::{Arc, Mutex};

use flashpan_devices::net::{Net, NetEvent};
use flashpan_devices::vsock::{Vsock, VsockEvent};
use flashpan_protocol::agent::GUEST_CID;
use flashpan_protocol::control::{IoRate, NetworkUse};
use flashpan_protocol::network::Link;

use super::{Observer, VmEvent};
use crate::descriptors;
use crate::error::BootError;

/// The vsock device; what it reports goes to the observer.
pub(super) fn vsock_device(
    observer: Arc<dyn Observer>,
    with_network: bool,
) -> Result<Arc<Mutex<Vsock>>, BootError> {
    let report = move |event| {
        observer.event(match event {
            VsockEvent::Incoming { id, port, stream } => VmEvent::Incoming { id, port, stream },
            VsockEvent::Connected { id } => VmEvent::Connected { id },
            VsockEvent::Refused { id } => VmEvent::Refused { id },
        });
    };
    let mut vsock = Vsock::new(u64::from(GUEST_CID), Box::new(report))
        .map_err(|e| BootError::host("make the vsock device", &std::io::Error::other(e)))?;
    if let Some(limit) = descriptors::limit() {
        vsock.limit_connections(match with_network {
            true => descriptors::for_connections_and_flows(limit).0,
            false => descriptors::for_connections(limit),
        });
    }
    Ok(Arc::new(Mutex::new(vsock)))
}

/// The network card; what it reports goes to the observer.
pub(super) fn net_device(
    link: Link,
    rate: IoRate,
    observer: Arc<dyn Observer>,
) -> Result<Arc<Mutex<Net>>, BootError> {
    let report = move |event| {
        observer.event(match event {
            NetEvent::Asked {
                id,
                protocol,
                tuple,
                socket,
            } => VmEvent::FlowAsked {
                id,
                protocol,
                tuple,
                socket,
            },
            NetEvent::Opened { request, id } => VmEvent::FlowOpened {
                id: request,
                flow: id,
            },
            NetEvent::NotOpened { request, why } => VmEvent::FlowNotOpened { id: request, why },
            NetEvent::Finished { id } => VmEvent::FlowFinished { id },
            NetEvent::Ended { id, how } => VmEvent::FlowEnded { id, how },
        });
    };
    let mut net = Net::new(link, Box::new(report))
        .map_err(|e| BootError::request(format!("the network card: {e}")))?
        .limited(rate);
    if let Some(limit) = descriptors::limit() {
        net.limit_flows(descriptors::for_connections_and_flows(limit).1);
    }
    Ok(Arc::new(Mutex::new(net)))
}

/// What has passed a card, as its guest sees it.
pub(super) fn network_use(net: &Net) -> NetworkUse {
    let (stack, rings) = (net.metrics(), net.ring_metrics());
    let dropped = [
        stack.malformed,
        stack.fragments,
        stack.protocols,
        stack.receivers,
        stack.sources,
        stack.crowded,
        stack.datagrams_lost,
        stack.datagrams_too_long,
        rings.oversized,
        rings.unplaceable,
    ];
    NetworkUse {
        received_bytes: stack.bytes_out,
        received_frames: stack.frames_out,
        sent_bytes: stack.bytes_in,
        sent_frames: stack.frames_in,
        flows_asked: stack.asked,
        flows_accepted: stack.accepted,
        flows_refused: stack.refused,
        dropped: dropped.into_iter().fold(0, u64::saturating_add),
    }
}
