//! sys - the system calls that need unsafe code, each wrapped once
//!
//! The only file of the workspace with unsafe code. A wrapper makes one call, takes and gives owned
//! or borrowed descriptors, and turns -1 into an [`io::Error`]. Where nix has a safe wrapper that one
//! is used, here or by the caller.

use std::ffi::{CStr, CString, c_char, c_int, c_long, c_uint, c_void};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::rc::Rc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, pipe2};

use crate::abi::{FLOW_READ_FD, FLOW_WRITE_FD, GENERATION_ENV, Generation, LISTEN_FD, STATUS_FD};

const _: () = assert!(MAX_LISTEN + LISTEN_FD as usize <= HIGH_FD as usize);

/// Descriptors that a program keeps lie at or above this number, so that the low ones, which a
/// child gets by number, are free when it is started.
pub const HIGH_FD: RawFd = 512;
/// The most listen sockets a service can have: they lie between [`LISTEN_FD`] and [`HIGH_FD`].
pub const MAX_LISTEN: usize = 500;

/// The monotonic clock.
pub(crate) fn monotonic() -> Duration {
    // CLOCK_MONOTONIC cannot fail on Linux; zero keeps the type simple.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// The words of strerror(3) for an error, without Rust's "(os error N)".
#[must_use]
pub fn errno_text(error: &io::Error) -> String {
    let Some(code) = error.raw_os_error() else {
        return error.to_string();
    };
    let mut text = [0 as c_char; 256];
    // SAFETY: the buffer is live and its length is told; the function ends it with a null byte.
    let failed = unsafe { libc::strerror_r(code, text.as_mut_ptr(), text.len()) };
    if failed != 0 {
        return format!("Unknown error {code}");
    }
    // SAFETY: strerror_r succeeded, so the buffer holds a string with its null byte.
    unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned()
}

static HIGH: AtomicI32 = AtomicI32::new(HIGH_FD);

/// Where the descriptors that this program keeps begin: at [`HIGH_FD`], or lower after [`fit_high`].
#[must_use]
pub fn high_fd() -> RawFd {
    HIGH.load(Ordering::Relaxed)
}

/// Lets them begin lower where the limit of open files is low. To be called before any is kept.
pub fn fit_high(limit: u64) {
    let part = RawFd::try_from(limit / 4).unwrap_or(HIGH_FD);
    HIGH.store(part.clamp(16, HIGH_FD), Ordering::Relaxed);
}

/// Moves a descriptor to [`high_fd`] or above, close-on-exec. Where the process may not have that
/// many open files it stays where it is, close-on-exec too.
///
/// # Errors
/// The process has no free descriptor.
pub fn set_high(fd: OwnedFd) -> io::Result<OwnedFd> {
    match fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(high_fd())) {
        // SAFETY: fcntl has just made this descriptor, so nobody else owns it.
        Ok(raw) => Ok(unsafe { OwnedFd::from_raw_fd(raw) }),
        Err(Errno::EINVAL) => {
            fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
            Ok(fd)
        }
        Err(error) => Err(error.into()),
    }
}

/// Adopts a descriptor that the process was started with, and makes it close-on-exec (Q05).
/// To be called once for a number.
///
/// # Errors
/// The descriptor is not open.
pub fn take_fd(raw: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes any number and touches no memory.
    check(unsafe { libc::fcntl(raw, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and by the master/worker interface nothing else in this process owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Owns a descriptor that a system call has just made for the caller and told by number.
///
/// # Errors
/// The number is none.
pub(crate) fn adopt(raw: RawFd) -> io::Result<OwnedFd> {
    check(raw)?;
    // SAFETY: by the contract above nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// Closes every descriptor from `first` up, whoever owns it: for the first lines of a program.
///
/// # Errors
/// The kernel is older than Linux 5.9.
pub fn close_from(first: c_uint) -> io::Result<()> {
    // SAFETY: the call touches no memory; at a program's start nothing owns a descriptor yet.
    check_long(unsafe { libc::syscall(libc::SYS_close_range, first, c_uint::MAX, 0) })
}

/// Makes the flow pipe and leaves it at [`FLOW_READ_FD`] and [`FLOW_WRITE_FD`] for good, inherited by
/// every child. Both ends are non-blocking (H01).
///
/// # Errors
/// No pipe, or no descriptor, is to be had.
pub fn place_flow_pipe() -> io::Result<()> {
    let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    let (read, write) = (set_high(read)?, set_high(write)?);
    place(read.as_raw_fd(), FLOW_READ_FD)?;
    place(write.as_raw_fd(), FLOW_WRITE_FD)
}

/// Makes standard input, output or error another open file.
///
/// # Errors
/// `from` is not open.
pub fn replace_standard(from: BorrowedFd<'_>, number: RawFd) -> io::Result<()> {
    debug_assert!((0..=2).contains(&number), "only 0, 1 and 2 belong to nobody");
    place(from.as_raw_fd(), number)
}

/// Ignores a signal, here and in every child.
///
/// # Errors
/// The signal cannot be ignored.
pub fn ignore_signal(signal: Signal) -> io::Result<()> {
    // SAFETY: ignoring a signal runs no handler.
    check_handler(unsafe { libc::signal(signal as c_int, libc::SIG_IGN) })
}

/// Gives a signal its default effect and raises it: the caller dies by it if it is a deadly one.
///
/// # Errors
/// The signal cannot be raised.
pub fn die_by(signal: Signal) -> io::Result<()> {
    // SAFETY: the default disposition runs no handler.
    check_handler(unsafe { libc::signal(signal as c_int, libc::SIG_DFL) })?;
    SigSet::from(signal).thread_unblock()?;
    Ok(nix::sys::signal::raise(signal)?)
}

/// Sets the scheduling priority of this process (setpriority(2)), -20 to 19.
///
/// # Errors
/// The process may not have it.
pub fn set_priority(nice: i32) -> io::Result<()> {
    // SAFETY: the call takes numbers only.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// How many clients wait in the accept queue of a TCP listen socket, and how many may.
///
/// # Errors
/// It is no TCP socket.
pub fn tcp_listen_queue(fd: BorrowedFd<'_>) -> io::Result<(u32, u32)> {
    // SAFETY: tcp_info is plain data; all zero bits are a value of it.
    let mut info: libc::tcp_info = unsafe { mem::zeroed() };
    let mut size = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).unwrap_or(0);
    // SAFETY: the buffer is live and its size is told.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut info).cast::<c_void>(),
            &raw mut size,
        )
    };
    check(result)?;
    // On a listen socket these two count the queue (tcp(7); net/ipv4/tcp.c, tcp_get_info).
    Ok((info.tcpi_unacked, info.tcpi_sacked))
}

/// Receives one byte, or none, with the descriptors that come along (SCM_RIGHTS); they are
/// close-on-exec. Each that the kernel has made is owned here, also when some found no room.
///
/// # Errors
/// Nothing came, within the socket's time.
pub fn receive_descriptors(socket: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    /// The kernel passes at most 253 in a message (SCM_MAX_FD).
    const ROOM: usize = 1024 + 64;
    /// Aligned as the kernel wants it.
    #[repr(C, align(16))]
    struct Room([u8; ROOM]);
    let (mut byte, mut room) = ([0_u8; 1], Room([0; ROOM]));
    let mut part = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // SAFETY: msghdr is plain data; all zero bits are a value of it.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (room.0.as_mut_ptr().cast(), ROOM);
    // SAFETY: the message points to live buffers whose sizes are told.
    let size =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if size == -1 {
        return Err(io::Error::last_os_error());
    }
    let mut received = Vec::new();
    // SAFETY: recvmsg has set the length of what it wrote to the room.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    while !header.is_null() {
        // SAFETY: it points to a whole header in the room, which is aligned for one.
        let head = unsafe { header.read() };
        if (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: the data lies behind the header.
            let data = unsafe { libc::CMSG_DATA(header) }.cast::<RawFd>();
            // SAFETY: the length of no data is that of the header; the function only computes.
            let empty = unsafe { libc::CMSG_LEN(0) } as usize;
            for at in 0..head.cmsg_len.saturating_sub(empty) / size_of::<RawFd>() {
                // SAFETY: within the length that the header tells.
                let place = unsafe { data.add(at) };
                // SAFETY: as above; it need not be aligned.
                let raw = unsafe { place.read_unaligned() };
                // SAFETY: the kernel has just made this descriptor, so nobody else owns it.
                received.push(unsafe { OwnedFd::from_raw_fd(raw) });
            }
        }
        // SAFETY: header is one of this message.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    Ok(received)
}

/// Keeps the C library from holding on to memory: what is large is mapped by itself and given back when
/// it is freed, whatever was freed before (mallopt(3)).
pub fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in
        [(libc::M_MMAP_THRESHOLD, 64 << 10), (libc::M_TRIM_THRESHOLD, 64 << 10)]
    {
        // SAFETY: it takes numbers only; one it refuses changes nothing.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Gives free memory back to the system, also from between what is in use (malloc_trim(3)).
pub fn return_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it moves nothing that is in use.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Writes what can be written without waiting, whatever the flags of the open file are, which others
/// may share (pwritev2(2), RWF_NOWAIT).
///
/// # Errors
/// EAGAIN when it would have to wait; EOPNOTSUPP when the file cannot tell.
pub fn write_without_waiting(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    let part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the vector is one live buffer that is only read; -1 writes at the file's position.
    let written =
        unsafe { libc::pwritev2(fd.as_raw_fd(), &raw const part, 1, -1, libc::RWF_NOWAIT) };
    usize::try_from(written).map_err(|_| io::Error::last_os_error())
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChildEnd {
    /// With this status.
    Status(i32),
    /// By this signal, a real-time one as well: nix knows no number for those, and fails.
    Signal(i32),
}

/// Waits for a child that has ended, whichever; None when none of them has.
///
/// # Errors
/// There is no child (ECHILD).
pub fn reap() -> io::Result<Option<(Pid, ChildEnd)>> {
    let mut status = 0;
    loop {
        // SAFETY: the pointer is to a live number.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        return match check(pid) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => Err(e),
            Ok(0) => Ok(None),
            Ok(pid) if libc::WIFEXITED(status) => {
                Ok(Some((Pid::from_raw(pid), ChildEnd::Status(libc::WEXITSTATUS(status)))))
            }
            Ok(pid) if libc::WIFSIGNALED(status) => {
                Ok(Some((Pid::from_raw(pid), ChildEnd::Signal(libc::WTERMSIG(status)))))
            }
            // Stopped, which was not asked for: it lives (L02).
            Ok(_) => continue,
        };
    }
}

/// Lets a TCP listen socket take no new connections, or again: their first segments are dropped, so
/// that the clients send them again a moment later. Connections that are on their way go on. This holds
/// for every process that has the socket.
///
/// # Errors
/// It is no socket, or the system has no room.
pub fn hold_connections(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    // Classic BPF on the TCP header: the byte of flags; drop if SYN is set and ACK is not.
    let filter = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let mut program = [
        filter(0x30, 0, 0, 13),   // ldb [13]
        filter(0x54, 0, 0, 0x12), // and #SYN|ACK
        filter(0x15, 0, 1, 0x02), // jeq #SYN
        filter(0x06, 0, 0, 0),    // ret #0
        filter(0x06, 0, 0, !0),   // ret #-1
    ];
    let length = u16::try_from(program.len()).unwrap_or(0);
    let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let option = if on { libc::SO_ATTACH_FILTER } else { libc::SO_DETACH_FILTER };
    let size = libc::socklen_t::try_from(size_of::<libc::sock_fprog>()).unwrap_or(0);
    // SAFETY: the program and what it points to are live, and the kernel makes a copy. What
    // SO_DETACH_FILTER is given it does not look at.
    let result = unsafe {
        let value = (&raw const program).cast::<c_void>();
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, value, size)
    };
    check(result).map(drop)
}

/// A descriptor for a process (pidfd_open(2)).
///
/// # Errors
/// The process has gone.
pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    adopt(RawFd::try_from(raw).unwrap_or(-1))
}

/// A copy of a descriptor of another process (pidfd_getfd(2)), close-on-exec.
///
/// # Errors
/// The process has gone, has no such descriptor, or is not for the caller to look into.
pub fn pidfd_getfd(process: BorrowedFd<'_>, number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let raw = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    adopt(RawFd::try_from(raw).unwrap_or(-1))
}

/// The file that a unix socket is bound to (unix(7), SIOCUNIXFILE), as with O_PATH.
///
/// # Errors
/// It is bound to none, or the caller may not ask (CAP_NET_ADMIN).
pub fn unix_socket_file(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    const SIOCUNIXFILE: libc::Ioctl = 0x89e0;
    // SAFETY: the request takes no argument and answers with a descriptor.
    adopt(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCUNIXFILE, 0) })
}

/// A wall clock time in the local time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalTime {
    /// Year, such as 2026.
    pub year: i32,
    /// Month, from 0.
    pub month: i32,
    /// Day of the month, from 1.
    pub day: i32,
    /// Day of the week, from Sunday as 0.
    pub weekday: i32,
    /// Hour.
    pub hour: i32,
    /// Minute.
    pub minute: i32,
    /// Second.
    pub second: i32,
    /// Seconds east of UTC.
    pub offset: i64,
}

impl LocalTime {
    /// The local time of a point on the wall clock.
    #[must_use]
    pub fn at(since_epoch: Duration) -> Self {
        let seconds = libc::time_t::try_from(since_epoch.as_secs()).unwrap_or(libc::time_t::MAX);
        // SAFETY: tm is plain data; all zero bits are a value of it.
        let mut tm: libc::tm = unsafe { mem::zeroed() };
        // SAFETY: both pointers are to live values of the right type; localtime_r keeps neither.
        // When it fails (a year beyond i32) tm stays zero.
        unsafe { libc::localtime_r(&raw const seconds, &raw mut tm) };
        Self {
            year: tm.tm_year + 1900,
            month: tm.tm_mon,
            day: tm.tm_mday,
            weekday: tm.tm_wday,
            hour: tm.tm_hour,
            minute: tm.tm_min,
            second: tm.tm_sec,
            offset: tm.tm_gmtoff,
        }
    }

    /// As syslog stamps it: `Nov  5 09:07:03`.
    #[must_use]
    pub fn stamp(&self) -> String {
        let Self { day, hour, minute, second, .. } = self;
        format!("{} {day:2} {hour:02}:{minute:02}:{second:02}", self.month_name())
    }

    /// As a Date header has it (RFC 5322 section 3.3): `Thu, 5 Nov 2026 09:07:03 +0100`.
    #[must_use]
    pub fn date_header(&self) -> String {
        const DAYS: [&str; 7] = ["Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"];
        let Self { year, day, hour, minute, second, offset, .. } = self;
        let weekday =
            usize::try_from(self.weekday).ok().and_then(|d| DAYS.get(d)).unwrap_or(&"Sun");
        let sign = if *offset < 0 { '-' } else { '+' };
        let minutes = offset.abs() / 60;
        let zone = format!("{sign}{:02}{:02}", minutes / 60, minutes % 60);
        let month = self.month_name();
        format!("{weekday}, {day} {month} {year} {hour:02}:{minute:02}:{second:02} {zone}")
    }

    fn month_name(&self) -> &'static str {
        const MONTHS: [&str; 12] =
            ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
        usize::try_from(self.month).ok().and_then(|m| MONTHS.get(m)).unwrap_or(&"Jan")
    }
}

/// Everything that the processes of a service are started from, made before it is needed.
#[derive(Debug)]
pub struct SpawnImage(Rc<Texts>);

#[derive(Debug)]
struct Texts {
    path: CString,
    args: Vec<CString>,
    env: Vec<CString>,
    stress: Option<usize>,
}

impl SpawnImage {
    /// An image of `path` with its arguments (the first is the command's name) and environment,
    /// without GENERATION. `stress` is the index of the argument `stress=yes`, whose value is left out
    /// for a process that starts without stress.
    ///
    /// # Errors
    /// A text has a null byte in it.
    pub fn new(
        path: &[u8],
        args: &[Vec<u8>],
        env: &[Vec<u8>],
        stress: Option<usize>,
    ) -> io::Result<Self> {
        let terminated = |texts: &[Vec<u8>]| {
            texts.iter().map(|t| CString::new(t.clone())).collect::<Result<Vec<_>, _>>()
        };
        let path = CString::new(path)?;
        Ok(Self(Rc::new(Texts { path, args: terminated(args)?, env: terminated(env)?, stress })))
    }
}

/// The listen sockets of one worker, at most [`MAX_LISTEN`]: their places never reach the descriptors
/// that the caller keeps.
#[derive(Debug)]
pub struct ListenFds<'a>(Vec<BorrowedFd<'a>>);

impl<'a> ListenFds<'a> {
    /// Takes the sockets in the order in which the worker gets them.
    ///
    /// # Errors
    /// There are more than a worker can have.
    pub fn new(fds: impl IntoIterator<Item = BorrowedFd<'a>>) -> io::Result<Self> {
        let fds: Vec<_> = fds.into_iter().collect();
        if fds.len() > MAX_LISTEN {
            let text = format!("{} listen sockets, a worker can have {MAX_LISTEN}", fds.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        Ok(Self(fds))
    }
}

/// A process that was started. It may not have executed its program yet: that can take long.
#[derive(Debug)]
pub struct Launch {
    /// Its id. It is to be waited for whatever becomes of it.
    pub pid: Pid,
    progress: Rc<Progress>,
}

impl Launch {
    /// Why the program could not be executed; the process then has ended with status 1. To be asked
    /// when it has ended.
    #[must_use]
    pub fn exec_error(&self) -> Option<io::Error> {
        match self.progress.error.load(Ordering::Acquire) {
            0 => None,
            code => Some(io::Error::from_raw_os_error(code)),
        }
    }
}

/// What the kernel and the child tell about a start.
#[derive(Debug)]
struct Progress {
    /// A futex. The kernel sets it to [`EXECUTED`] when the child uses this memory no more.
    stage: AtomicI32,
    /// The errno value of execve(2); 0 is none.
    error: AtomicI32,
}

/// The child shares the descriptor table with its parent, which waits.
const SHARING: i32 = 1;
/// The child has its own table, and executes its program while the parent goes on.
const APART: i32 = 2;
/// The child has executed its program or has ended: it uses this memory no more.
const EXECUTED: i32 = 0;

/// Starts processes, and keeps what they use until they have executed their programs.
#[derive(Debug, Default)]
pub struct Spawner {
    stacks: Vec<Stack>,
    under_way: Vec<UnderWay>,
}

/// What a child uses of this process's memory.
#[derive(Debug)]
struct UnderWay {
    stack: Stack,
    order: Box<Order>,
}

/// The stack on which a child runs until it executes its program. A child makes nothing but system
/// calls on it.
#[derive(Debug)]
struct Stack(Box<[u8]>);

const STACK_SIZE: usize = 32 * 1024;

impl Spawner {
    /// Starts a process: the status socket is its descriptor 5, the listen sockets 6 and up, the flow
    /// pipe 3 and 4; nothing else above 2 is open in it. Its signals have their defaults, but SIGPIPE
    /// as the caller has it, and none is blocked. `files` is its limit of open files (soft, hard).
    ///
    /// The caller has one thread. Should something be open at a number that the child is to get, that
    /// is an error.
    ///
    /// The child shares the caller's memory until it executes the program (CLONE_VM), and for a
    /// moment the descriptor table (CLONE_FILES): the kernel copies the few descriptors below the
    /// first unused one and not the thousands above it (CLOSE_RANGE_UNSHARE), so that the cost does
    /// not grow with what the caller has open. The caller waits for that moment alone: the exec, which
    /// a hung file system or a scanner can hold, goes on beside it. That is why this is not vfork(2).
    ///
    /// # Errors
    /// No process or descriptor is to be had.
    pub fn spawn(
        &mut self,
        image: &SpawnImage,
        generation: Generation,
        stress: bool,
        status: BorrowedFd<'_>,
        listen: &ListenFds<'_>,
        files: (u64, u64),
    ) -> io::Result<Launch> {
        self.sweep();
        let slots = Slots::fill(status, listen)?;
        let order = Order::new(Rc::clone(&image.0), generation, stress, slots.end, files)?;
        let progress = Rc::clone(&order.progress);
        let mut stack = self.stacks.pop().unwrap_or_else(Stack::new);
        let top = stack.top();
        let mut flags =
            libc::CLONE_VM | libc::CLONE_FILES | libc::CLONE_CHILD_CLEARTID | libc::SIGCHLD;
        if !EXEC_IS_RAW {
            flags |= libc::CLONE_VFORK;
        }
        let mut old = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut old))?;
        let argument = (&raw const *order).cast_mut().cast::<c_void>();
        let none = ptr::null_mut::<c_void>();
        // SAFETY: the order, with all it points to, and the stack are kept in `under_way` until the
        // kernel has cleared `stage`, which is after the child's last use of this memory. The child
        // changes nothing but its stack and the atomic values; see `child` for errno.
        let pid = unsafe {
            libc::clone(child, top, flags, argument, none, none, progress.stage.as_ptr())
        };
        let started = check(pid);
        if started.is_ok() {
            while progress.stage.load(Ordering::Acquire) == SHARING {
                futex(&progress.stage, libc::FUTEX_WAIT, SHARING);
            }
            self.under_way.push(UnderWay { stack, order });
        } else {
            self.stacks.push(stack);
        }
        // The child's copies are its own by now.
        drop(slots);
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&old), None)?;
        Ok(Launch { pid: Pid::from_raw(started?), progress })
    }

    /// Frees what children use no more.
    fn sweep(&mut self) {
        for done in self.under_way.extract_if(.., |u| u.is_done()) {
            // Many at once are an exception.
            if self.stacks.len() < 4 {
                self.stacks.push(done.stack);
            }
        }
    }
}

impl Drop for Spawner {
    fn drop(&mut self) {
        self.sweep();
        // A child whose exec is slow goes on to use what was made for it.
        self.under_way.drain(..).for_each(mem::forget);
    }
}

impl UnderWay {
    fn is_done(&self) -> bool {
        self.order.progress.stage.load(Ordering::Acquire) == EXECUTED
    }
}

impl Stack {
    fn new() -> Self {
        Self(vec![0; STACK_SIZE].into_boxed_slice())
    }

    /// Where a stack that grows down begins, with the alignment that the C library asks for.
    fn top(&mut self) -> *mut c_void {
        // SAFETY: one byte past the end of the buffer is a valid address to make.
        let end = unsafe { self.0.as_mut_ptr().add(STACK_SIZE) };
        end.map_addr(|a| a & !15).cast()
    }
}

/// Runs a text without `#!`, as execvp(3) does (F03).
const SHELL: &CStr = c"/bin/sh";

/// The descriptors a child gets by number, in their places; dropping it frees the places.
struct Slots {
    end: RawFd,
}

impl Slots {
    fn fill(status: BorrowedFd<'_>, listen: &ListenFds<'_>) -> io::Result<Self> {
        let mut slots = Self { end: STATUS_FD };
        for fd in std::iter::once(&status).chain(&listen.0) {
            // The lowest free number from this one on: it replaces nothing.
            let placed = fcntl(fd, FcntlArg::F_DUPFD(slots.end))?;
            if placed != slots.end {
                // SAFETY: fcntl has just made it and nothing else knows it.
                unsafe { libc::close(placed) };
                let text = format!("descriptor {} is in use, and is for workers", slots.end);
                return Err(io::Error::other(text));
            }
            slots.end += 1;
        }
        Ok(slots)
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        for number in STATUS_FD..self.end {
            // SAFETY: `fill` has put the descriptor there and nothing else knows it.
            unsafe { libc::close(number) };
        }
    }
}

/// What the child is to do. It is read by the child while the parent goes on, so that nobody changes
/// it, and a child's own texts are its own.
#[derive(Debug)]
struct Order {
    texts: Rc<Texts>,
    _generation: CString,
    argv: Vec<*const c_char>,
    shell_argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    first_unused: c_uint,
    files: libc::rlimit,
    progress: Rc<Progress>,
}

impl Order {
    fn new(
        texts: Rc<Texts>,
        generation: Generation,
        stress: bool,
        end: RawFd,
        files: (u64, u64),
    ) -> io::Result<Box<Self>> {
        let stress_word = if stress { c"stress=yes" } else { c"stress=" };
        let word = |(at, text): (usize, &CString)| {
            if texts.stress == Some(at) { stress_word.as_ptr() } else { text.as_ptr() }
        };
        let mut argv: Vec<_> = texts.args.iter().enumerate().map(word).collect();
        let mut shell_argv = vec![SHELL.as_ptr(), texts.path.as_ptr()];
        shell_argv.extend(argv.iter().skip(1));
        argv.push(ptr::null());
        shell_argv.push(ptr::null());
        let generation = CString::new(format!("{GENERATION_ENV}={generation}"))?;
        let mut envp: Vec<_> = texts.env.iter().map(|text| text.as_ptr()).collect();
        envp.extend([generation.as_ptr(), ptr::null()]);
        let (stage, error) = (AtomicI32::new(SHARING), AtomicI32::new(0));
        Ok(Box::new(Self {
            argv,
            shell_argv,
            envp,
            texts,
            _generation: generation,
            first_unused: end.unsigned_abs(),
            files: libc::rlimit { rlim_cur: files.0, rlim_max: files.1 },
            progress: Rc::new(Progress { stage, error }),
        }))
    }
}

/// The child between clone and exec: system calls alone, no memory of its own but the stack. It shares
/// errno with its parent, so that what could set errno comes while the parent waits; after that there
/// is only [`execute`], which does not.
extern "C" fn child(order: *mut c_void) -> c_int {
    // SAFETY: spawn passes a pointer to its Order and keeps that while this runs.
    let order = unsafe { &*order.cast::<Order>() };
    let progress = &order.progress;
    // SAFETY: takes numbers only. The table becomes the child's own, without what lies above.
    let closed = unsafe {
        let last = c_uint::MAX;
        libc::syscall(libc::SYS_close_range, order.first_unused, last, libc::CLOSE_RANGE_UNSHARE)
    };
    if closed == -1 {
        // Going on would close and open descriptors in the parent's table.
        progress.error.store(Errno::last_raw(), Ordering::Release);
        return 1;
    }
    // The kernel's own form of sigaction(2): the C library keeps two signals from its callers, and a
    // caller may have inherited them ignored. All zero is the default, with no flags and no mask.
    let default = [0_u64; 4];
    for signal in (1..=64).filter(|&s| s != libc::SIGPIPE) {
        // SAFETY: the pointer is to a live value of the kernel's size; nothing old is asked for. The
        // child has a copy of the handlers (no CLONE_SIGHAND), so the parent keeps its own. KILL and
        // STOP fail, harmlessly.
        unsafe {
            let none = ptr::null_mut::<c_void>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), none, size_of::<u64>())
        };
    }
    // SAFETY: the pointer is to a live rlimit. A failure leaves the parent's limit in force.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const order.files) };
    // SAFETY: sigset_t is plain data; all zero bits are the empty set on Linux.
    let none: libc::sigset_t = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to a live set; the old one is not asked for.
    unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut()) };
    progress.stage.store(APART, Ordering::Release);
    // Its errors are none: at most one waits, and it looks at the value.
    futex(&progress.stage, libc::FUTEX_WAKE, 1);
    let mut error = execute(&order.texts.path, &order.argv, &order.envp);
    if error == libc::ENOEXEC {
        error = execute(SHELL, &order.shell_argv, &order.envp);
    }
    progress.error.store(error, Ordering::Release);
    // Returning makes the C library call exit(2) for this task: no handler of the parent runs.
    1
}

/// Waits while a futex has a value, or wakes who does. The parent may come back early; it looks again.
fn futex(word: &AtomicI32, operation: c_int, value: c_int) {
    // SAFETY: the word is live; there is no timeout. Not private: the kernel's own wake-up is not.
    unsafe {
        let forever = ptr::null::<libc::timespec>();
        libc::syscall(libc::SYS_futex, word.as_ptr(), operation, value, forever)
    };
}

/// Whether [`execute`] leaves errno alone. Where it does not the parent sleeps meanwhile.
const EXEC_IS_RAW: bool = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));

/// execve(2) without the C library; comes back with the error alone. Both arrays end with null
/// pointers, and the texts with null bytes.
fn execute(path: &CStr, argv: &[*const c_char], envp: &[*const c_char]) -> c_int {
    let (path, argv, envp) = (path.as_ptr(), argv.as_ptr(), envp.as_ptr());
    let result: c_long;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the kernel's calling convention; the texts and arrays are live and terminated.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") libc::SYS_execve => result,
            in("rdi") path,
            in("rsi") argv,
            in("rdx") envp,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the kernel's calling convention; the texts and arrays are live and terminated.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") libc::SYS_execve,
            inlateout("x0") path => result,
            in("x1") argv,
            in("x2") envp,
            options(nostack),
        );
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        // SAFETY: the texts and arrays are live and terminated.
        unsafe { libc::execve(path, argv, envp) };
        result = -c_long::from(Errno::last_raw());
    }
    c_int::try_from(-result).unwrap_or(libc::EINVAL)
}

/// Puts a copy of an open file at a number, inherited by children.
fn place(from: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2 takes numbers; the callers own what they replace.
    check(unsafe { libc::dup2(from, number) }).map(drop)
}

/// How many bytes in a TCP socket's send queue the other end has not acknowledged (SIOCOUTQ).
///
/// # Errors
/// It is no such socket.
pub fn unacknowledged(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut count: c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ by its other name, writes one int to the address it is given.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut count) })?;
    Ok(u64::try_from(count).unwrap_or(0))
}

/// Gives up a descriptor's ownership and tells its number, for a library that takes numbers.
#[must_use]
pub fn release(fd: OwnedFd) -> RawFd {
    fd.into_raw_fd()
}

fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_long(result: c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check_handler(result: libc::sighandler_t) -> io::Result<()> {
    if result == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Random bytes from the kernel (getrandom(2)); no file is needed, so it works in a jail.
///
/// # Errors
/// The kernel has no such call.
pub fn random() -> io::Result<[u8; 16]> {
    let mut bytes = [0; 16];
    // SAFETY: the pointer is to `bytes`, which has this length. Up to 256 bytes come whole.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(count) == Ok(bytes.len()) {
        Ok(bytes)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn errors_have_the_words_of_the_c_library() {
        let text = |code| errno_text(&io::Error::from_raw_os_error(code));
        assert_eq!(text(libc::EAGAIN), "Resource temporarily unavailable");
        assert_eq!(text(libc::ENOENT), "No such file or directory");
    }

    #[test]
    fn times_are_written_as_syslog_and_mail_have_them() {
        let t = LocalTime {
            year: 2026,
            month: 10,
            day: 5,
            weekday: 4,
            hour: 9,
            minute: 7,
            second: 3,
            offset: -12_600,
        };
        assert_eq!(t.stamp(), "Nov  5 09:07:03");
        assert_eq!(t.date_header(), "Thu, 5 Nov 2026 09:07:03 -0330");
    }

    /// With 600 addresses the places of a worker's sockets reached the master's own descriptors.
    #[test]
    fn nothing_that_is_open_is_replaced_by_what_a_worker_gets() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let listen = |count| ListenFds::new(std::iter::repeat_n(null.as_fd(), count));
        assert!(listen(MAX_LISTEN).is_ok());
        let error = listen(MAX_LISTEN + 1).unwrap_err();
        assert_eq!(errno_text(&error), "501 listen sockets, a worker can have 500");
        // Whatever lies at 5 by now: it is open.
        let held = fcntl(&null, FcntlArg::F_DUPFD_CLOEXEC(STATUS_FD)).unwrap();
        let before = std::fs::read_link("/proc/self/fd/5").unwrap();
        let error = Slots::fill(null.as_fd(), &listen(3).unwrap()).err().unwrap();
        assert_eq!(errno_text(&error), "descriptor 5 is in use, and is for workers");
        assert_eq!(std::fs::read_link("/proc/self/fd/5").unwrap(), before);
        drop(adopt(held));
    }

    #[test]
    fn a_high_descriptor_is_high_and_closed_on_exec() {
        let fd = set_high(OwnedFd::from(std::fs::File::open("/dev/null").unwrap())).unwrap();
        assert!(fd.as_raw_fd() >= HIGH_FD);
        assert_eq!(fcntl(&fd, FcntlArg::F_GETFD).unwrap(), libc::FD_CLOEXEC);
    }
}
