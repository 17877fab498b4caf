//! A guest without a kernel: a driver of the three queues, well-behaved as long
//! as nobody asks for something else.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use event_manager::EventSet;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::packet::{HEADER_LEN, HOST_CID, Header, Op};
use super::super::{Deadlines, QUEUE_SIZES, Vsock, VsockEvent};
use super::socket::{Socket, header};
use crate::virtio::{Activation, GuestRam, Interrupt, VirtioDevice};

pub(super) const GUEST_CID: u64 = 42;
pub(super) const MEMORY: u64 = 64 << 20;
pub(super) const RX: usize = 0;
pub(super) const TX: usize = 1;
pub(super) const EVENT: usize = 2;

pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

pub(super) const FEATURES: u64 =
    1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << 32;

/// What Linux gives: a page without `struct skb_shared_info`.
pub(super) const LINUX_RX_BUFFER: u32 = 4096 - 320;

/// Buffers of descriptor `i` of queue `q`.
const STRIDE: u64 = 0x1_2000;
const DATA: u64 = 0x10_0000;

/// Longer than anything here takes; only a failing test waits for it.
const PATIENCE: i32 = 20_000;

/// The driver's side of a queue.
#[derive(Clone)]
pub(super) struct Ring {
    base: u64,
    pub(super) size: u16,
    pub(super) avail: u16,
    pub(super) used: u16,
}

impl Ring {
    fn new(index: usize) -> Self {
        Self {
            base: 0x1_0000 * (index as u64 + 1),
            size: QUEUE_SIZES[index],
            avail: 0,
            used: 0,
        }
    }

    fn avail_addr(&self) -> u64 {
        self.base + 0x4000
    }

    fn used_addr(&self) -> u64 {
        self.base + 0x8000
    }

    /// The ring as the device gets it.
    pub(super) fn queue(&self, features: u64) -> Queue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_size(self.size);
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some(self.avail_addr() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used_addr() as u32), Some(0));
        queue.set_event_idx(features & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
        queue.set_ready(true);
        queue
    }

    pub(super) fn describe(&self, memory: &GuestRam, at: u16, descriptor: (u64, u32, u16, u16)) {
        write_descriptor(memory, self.base + 16 * u64::from(at), descriptor);
    }

    /// Makes a chain available, without a kick.
    pub(super) fn offer(&mut self, memory: &GuestRam, head: u16) {
        let slot = self.avail_addr() + 4 + 2 * u64::from(self.avail % self.size);
        memory.write_obj(head, GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.publish(memory, self.avail);
    }

    pub(super) fn publish(&self, memory: &GuestRam, index: u16) {
        memory
            .write_obj(index, GuestAddress(self.avail_addr() + 2))
            .unwrap();
    }

    /// Takes back a used chain: head and bytes written.
    pub(super) fn take(&mut self, memory: &GuestRam) -> Option<(u16, u32)> {
        let index: u16 = memory.read_obj(GuestAddress(self.used_addr() + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let slot = self.used_addr() + 4 + 8 * u64::from(self.used % self.size);
        let head: u32 = memory.read_obj(GuestAddress(slot)).unwrap();
        let len: u32 = memory.read_obj(GuestAddress(slot + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        Some((head as u16, len))
    }

    /// Wants an interrupt at the next used chain.
    pub(super) fn enable_interrupt(&self, memory: &GuestRam) {
        let used_event = self.avail_addr() + 4 + 2 * u64::from(self.size);
        memory
            .write_obj(self.used, GuestAddress(used_event))
            .unwrap();
    }

    /// Whether the device wants a kick for what was offered since `old`
    /// (`vring_need_event`).
    pub(super) fn wants_kick(&self, memory: &GuestRam, old: u16) -> bool {
        let avail_event = self.used_addr() + 4 + 8 * u64::from(self.size);
        let event: u16 = memory.read_obj(GuestAddress(avail_event)).unwrap();
        self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old)
    }
}

pub(super) fn write_descriptor(memory: &GuestRam, at: u64, descriptor: (u64, u32, u16, u16)) {
    let (addr, len, flags, next) = descriptor;
    memory.write_obj(addr, GuestAddress(at)).unwrap();
    memory.write_obj(len, GuestAddress(at + 8)).unwrap();
    memory.write_obj(flags, GuestAddress(at + 12)).unwrap();
    memory.write_obj(next, GuestAddress(at + 14)).unwrap();
}

pub(super) fn data(queue: usize, at: u16) -> u64 {
    match queue {
        RX => DATA + STRIDE * u64::from(at),
        TX => DATA + STRIDE * (256 + u64::from(at)),
        _ => DATA + STRIDE * 512 + 16 * u64::from(at),
    }
}

pub(super) type Packet = (Header, Vec<u8>);

pub(super) struct Guest {
    pub(super) device: Vsock,
    pub(super) memory: GuestRam,
    pub(super) rings: [Ring; 3],
    pub(super) interrupt: Interrupt,
    pub(super) line: EventFd,
    /// Packets from the device that nobody looked at yet.
    pub(super) inbox: VecDeque<Packet>,
    pub(super) host: Receiver<VsockEvent>,
    /// Buffers go back to the device as soon as they are read.
    pub(super) repost: bool,
    rx_len: u32,
    /// The device's descriptor.
    epoll: Epoll,
    /// That, and the ends of threads of the host.
    anything: Epoll,
}

impl Guest {
    pub(super) fn new() -> Self {
        Self::with_deadlines(Deadlines::default())
    }

    /// A driver that is ready, with all buffers of Linux' size given.
    pub(super) fn with_deadlines(deadlines: Deadlines) -> Self {
        let mut guest = Self::bare(deadlines);
        guest.activate(FEATURES);
        guest.post_all(LINUX_RX_BUFFER);
        guest.post_events(8);
        guest.device.run();
        guest
    }

    /// A device without a driver.
    pub(super) fn bare(deadlines: Deadlines) -> Self {
        let (send, host) = channel();
        let host_side = Box::new(move |event| {
            let _ = send.send(event);
        });
        let device = Vsock::with_deadlines(GUEST_CID, host_side, deadlines).unwrap();
        let (epoll, anything) = (Epoll::new().unwrap(), Epoll::new().unwrap());
        let event = EpollEvent::new(EventSet::IN, 0);
        for epoll in [&epoll, &anything] {
            let fd = device.as_raw_fd();
            epoll.ctl(ControlOperation::Add, fd, event).unwrap();
        }
        let line = EventFd::new(EFD_NONBLOCK).unwrap();
        Self {
            device,
            memory: GuestRam::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap(),
            rings: [Ring::new(RX), Ring::new(TX), Ring::new(EVENT)],
            interrupt: Interrupt::new(line.try_clone().unwrap()),
            line,
            inbox: VecDeque::new(),
            host,
            repost: true,
            rx_len: 0,
            epoll,
            anything,
        }
    }

    pub(super) fn activate(&mut self, features: u64) {
        let queues = self.rings.iter().map(|ring| ring.queue(features)).collect();
        self.activate_with(queues, features);
    }

    pub(super) fn activate_with(&mut self, queues: Vec<Queue>, features: u64) {
        let activation = Activation {
            memory: self.memory.clone(),
            features,
            queues,
            interrupt: self.interrupt.clone(),
        };
        self.device.activate(activation).unwrap();
    }

    /// Gives a receive buffer for each descriptor.
    pub(super) fn post_all(&mut self, len: u32) {
        self.rx_len = len;
        for at in 0..self.rings[RX].size {
            self.post(at, len);
        }
    }

    /// The size of buffers that are given back.
    pub(super) fn set_rx_len(&mut self, len: u32) {
        self.rx_len = len;
    }

    pub(super) fn post(&mut self, at: u16, len: u32) {
        let descriptor = (data(RX, at), len, WRITE, 0);
        self.rings[RX].describe(&self.memory, at, descriptor);
        self.rings[RX].offer(&self.memory, at);
    }

    pub(super) fn post_events(&mut self, count: u16) {
        for at in 0..count {
            self.rings[EVENT].describe(&self.memory, at, (data(EVENT, at), 4, WRITE, 0));
            self.rings[EVENT].offer(&self.memory, at);
        }
    }

    /// Lets the device work until it waits for something.
    pub(super) fn settle(&mut self) {
        self.device.run();
        self.reap();
        for _ in 0..1000 {
            if !self.is_ready(0) {
                return;
            }
            self.device.run_streams();
            self.reap();
        }
        panic!("the device does not come to rest");
    }

    /// Whether the event loop would run the device, within a time.
    pub(super) fn is_ready(&self, timeout: i32) -> bool {
        let mut events = [EpollEvent::default()];
        self.epoll.wait(timeout, &mut events).unwrap() == 1
    }

    /// Lets the device work until `done`, which is asked again after each event.
    pub(super) fn run_until(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        loop {
            self.settle();
            if done(self) {
                return;
            }
            let mut events = [EpollEvent::default()];
            let count = self.anything.wait(PATIENCE, &mut events).unwrap();
            assert_eq!(count, 1, "nothing happens any more");
        }
    }

    /// Starts a thread of the host, to be waited for with [`Self::finish`].
    pub(super) fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Task<T> {
        let done = Arc::new(EventFd::new(EFD_NONBLOCK).unwrap());
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        let fd = done.as_raw_fd();
        self.anything.ctl(ControlOperation::Add, fd, event).unwrap();
        let guard = Done(done.clone());
        let thread = std::thread::spawn(move || {
            let _guard = guard;
            work()
        });
        Task { thread, done }
    }

    /// Lets the device work until the thread has done its work.
    pub(super) fn finish<T>(&mut self, task: Task<T>) -> T {
        self.run_until(|_| task.done.read().is_ok());
        task.thread.join().unwrap()
    }

    /// Takes packets out of used receive buffers, and forgets sent ones.
    pub(super) fn reap(&mut self) {
        while let Some((head, len)) = self.rings[RX].take(&self.memory) {
            let mut bytes = vec![0; len as usize];
            let at = GuestAddress(data(RX, head));
            self.memory.read_slice(&mut bytes, at).unwrap();
            let (header, payload) = bytes.split_first_chunk::<HEADER_LEN>().unwrap();
            let header = Header::parse(header);
            assert_eq!(header.len as usize, payload.len());
            assert_eq!(header.dst_cid, GUEST_CID);
            self.inbox.push_back((header, payload.to_vec()));
            if self.repost {
                self.post(head, self.rx_len);
            }
        }
        while let Some((_, len)) = self.rings[TX].take(&self.memory) {
            assert_eq!(len, 0, "the device wrote to a buffer that it may only read");
        }
    }

    /// Takes the next packet, which must have come already.
    pub(super) fn receive(&mut self) -> Packet {
        self.settle();
        self.inbox.pop_front().expect("the device sent no packet")
    }

    /// Takes the next packet, which must be for this.
    pub(super) fn expect(&mut self, op: Op) -> Packet {
        let packet = self.receive();
        assert_eq!(packet.0.op(), Some(op), "{:?}", packet.0);
        assert_eq!(packet.0.src_cid, HOST_CID);
        packet
    }

    pub(super) fn expect_silence(&mut self) {
        self.settle();
        assert_eq!(self.inbox.pop_front().map(|(header, _)| header), None);
    }

    pub(super) fn event(&mut self) -> VsockEvent {
        self.settle();
        self.host
            .try_recv()
            .expect("the device told the host nothing")
    }

    /// Sends a packet as Linux does since 6.3: header and payload one behind the
    /// other in memory, in as many descriptors as `cuts` says.
    pub(super) fn transmit_cut(&mut self, header: &Header, payload: &[u8], cuts: &[usize]) {
        let slot = self.rings[TX].avail % 64;
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        let start = data(TX, slot * 4);
        self.memory
            .write_slice(&bytes, GuestAddress(start))
            .unwrap();
        let mut bounds = vec![0];
        bounds.extend(
            cuts.iter()
                .copied()
                .filter(|cut| (1..bytes.len()).contains(cut)),
        );
        bounds.sort_unstable();
        bounds.dedup();
        bounds.truncate(4);
        for (i, from) in bounds.iter().enumerate() {
            let to = bounds.get(i + 1).copied().unwrap_or(bytes.len());
            let at = slot * 4 + i as u16;
            let flags = if i + 1 < bounds.len() { NEXT } else { 0 };
            let descriptor = (start + *from as u64, (to - from) as u32, flags, at + 1);
            self.rings[TX].describe(&self.memory, at, descriptor);
        }
        self.rings[TX].offer(&self.memory, slot * 4);
    }

    pub(super) fn transmit(&mut self, header: &Header, payload: &[u8]) {
        self.transmit_cut(header, payload, &[HEADER_LEN]);
    }

    /// A packet from this guest, without connection.
    pub(super) fn raw(&mut self, op: Op, host: u32, guest: u32) {
        self.transmit(&header(op, host, guest), &[]);
        self.settle();
    }

    /// Connects from the host: socket of the guest, stream of the host.
    pub(super) fn connect_in(&mut self, port: u32) -> (Socket, UnixStream) {
        let (ours, theirs) = pair();
        self.device.connect(7, port, theirs);
        let (request, _) = self.expect(Op::Request);
        assert_eq!(request.dst_port, port);
        let mut socket = Socket::new(request.src_port, port);
        socket.learn(&request);
        socket.control(self, Op::Response, 0);
        assert!(matches!(self.event(), VsockEvent::Connected { id: 7 }));
        (socket, ours)
    }

    /// Connects from the guest, with this receive buffer.
    pub(super) fn connect_out(&mut self, port: u32, buf_alloc: u32) -> (Socket, UnixStream) {
        let mut socket = Socket::new(port, 50_000 + port);
        socket.buf_alloc = buf_alloc;
        socket.control(self, Op::Request, 0);
        let VsockEvent::Incoming {
            id,
            port: asked,
            stream,
        } = self.event()
        else {
            panic!("no connection");
        };
        assert_eq!(asked, port);
        self.expect_silence();
        self.device.accept(id);
        let (response, _) = self.expect(Op::Response);
        socket.learn(&response);
        patient(&stream);
        (socket, stream)
    }
}

/// A thread of the host.
pub(super) struct Task<T> {
    thread: JoinHandle<T>,
    done: Arc<EventFd>,
}

/// Says so when a thread of the host ends, in whichever way.
struct Done(Arc<EventFd>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.write(1).unwrap();
    }
}

/// A stream whose reads end rather than block a failing test.
pub(super) fn pair() -> (UnixStream, UnixStream) {
    let (a, b) = UnixStream::pair().unwrap();
    patient(&a);
    (a, b)
}

fn patient(stream: &UnixStream) {
    let patience = Some(Duration::from_millis(PATIENCE as u64));
    stream.set_read_timeout(patience).unwrap();
    stream.set_write_timeout(patience).unwrap();
}

/// Bytes that tell where they belong.
pub(super) fn pattern(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state as u8
        })
        .collect()
}
