//! sys - the system calls that need unsafe code, each wrapped once
//!
//! The only file of the workspace with unsafe code. A wrapper makes one call, takes and gives owned
//! or borrowed descriptors, and turns -1 into an [`io::Error`]. Where nix has a safe wrapper that one
//! is used, here or by the caller.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, pipe2};

use crate::abi::{FLOW_READ_FD, FLOW_WRITE_FD, GENERATION_ENV, Generation, LISTEN_FD, STATUS_FD};

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

/// Moves a descriptor to [`HIGH_FD`] or above, close-on-exec. Where the process may not have that
/// many open files it stays where it is, close-on-exec too.
///
/// # Errors
/// The process has no free descriptor.
pub fn set_high(fd: OwnedFd) -> io::Result<OwnedFd> {
    match fcntl(&fd, FcntlArg::F_DUPFD_CLOEXEC(HIGH_FD)) {
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

/// Everything that a new process is started from, made before it is needed: between clone and exec
/// nothing is allocated.
#[derive(Debug)]
pub struct SpawnImage {
    path: CString,
    args: Vec<Vec<u8>>,
    env: Vec<Vec<u8>>,
    stress: Option<usize>,
    argv: Vec<*const c_char>,
    shell_argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
}

/// The stack on which children run until they execute their program; one serves all, since the
/// parent sleeps meanwhile.
#[derive(Debug)]
pub struct ChildStack(Box<[u8]>);

impl Default for ChildStack {
    fn default() -> Self {
        Self(vec![0; STACK_SIZE].into_boxed_slice())
    }
}

/// The process that [`SpawnImage::spawn`] started.
#[derive(Debug)]
pub struct Spawned {
    /// Its id. It is to be waited for whatever became of it.
    pub pid: Pid,
    /// Why the program could not be executed; the process then has ended with status 1.
    pub exec_error: Option<io::Error>,
}

/// `GENERATION=` with room for the 11 octal digits of 32 bits and a null byte.
const GENERATION_ROOM: usize = GENERATION_ENV.len() + 1 + 11 + 1;
const STACK_SIZE: usize = 64 * 1024;

impl SpawnImage {
    /// An image of `path` with its arguments (the first is the command's name) and environment,
    /// without GENERATION. `stress` is the index of the argument `stress=yes`, whose value is cut off
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
            let with_nul = |t: &Vec<u8>| CString::new(t.clone()).map(CString::into_bytes_with_nul);
            texts.iter().map(with_nul).collect::<Result<Vec<_>, _>>()
        };
        let mut env = terminated(env)?;
        env.push(vec![0; GENERATION_ROOM]);
        let args = terminated(args)?;
        Ok(Self {
            path: CString::new(path)?,
            argv: Vec::with_capacity(args.len() + 1),
            shell_argv: Vec::with_capacity(args.len() + 2),
            envp: Vec::with_capacity(env.len() + 1),
            args,
            env,
            stress,
        })
    }

    /// Starts a process: the status socket is its descriptor 5, the listen sockets 6 and up, the flow
    /// pipe 3 and 4; nothing else above 2 is open in it. Its signals have their defaults, but SIGPIPE
    /// as the caller has it, and none is blocked. `files` is its limit of open files (soft, hard).
    ///
    /// The caller has one thread, and nothing of its own open from 5 up to [`HIGH_FD`].
    ///
    /// The child shares the caller's memory and descriptor table until it executes the program
    /// (CLONE_VM, CLONE_VFORK, CLONE_FILES): the kernel then copies the few descriptors below the
    /// first unused one and not the thousands above it (CLOSE_RANGE_UNSHARE), so that the cost does
    /// not grow with what the caller has open.
    ///
    /// # Errors
    /// No process or descriptor is to be had.
    pub fn spawn(
        &mut self,
        stack: &mut ChildStack,
        generation: Generation,
        stress: bool,
        status: BorrowedFd<'_>,
        listen: &[BorrowedFd<'_>],
        files: (u64, u64),
    ) -> io::Result<Spawned> {
        self.patch(generation, stress);
        let slots = Slots::fill(status, listen)?;
        let order = Order {
            path: self.path.as_ptr(),
            argv: self.argv.as_ptr(),
            shell_argv: self.shell_argv.as_ptr(),
            envp: self.envp.as_ptr(),
            first_unused: slots.end.unsigned_abs(),
            files: libc::rlimit { rlim_cur: files.0, rlim_max: files.1 },
            error: AtomicI32::new(0),
        };
        let mut old = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut old))?;
        // SAFETY: one byte past the end of the buffer is a valid address for the start of a stack
        // that grows down; its size is a multiple of 16.
        let top = unsafe { stack.0.as_mut_ptr().add(STACK_SIZE) };
        let top = top.map_addr(|a| a & !15);
        let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_FILES | libc::SIGCHLD;
        // SAFETY: with CLONE_VFORK this thread sleeps until the child has executed a program or
        // ended, so `order`, the image and the stack outlive its use of them; `child` makes only
        // system calls.
        let pid = unsafe {
            libc::clone(child, top.cast(), flags, (&raw const order).cast_mut().cast::<c_void>())
        };
        let result = check(pid);
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&old), None)?;
        drop(slots);
        let exec_error = match order.error.load(Ordering::Relaxed) {
            0 => None,
            code => Some(io::Error::from_raw_os_error(code)),
        };
        result.map(|pid| Spawned { pid: Pid::from_raw(pid), exec_error })
    }

    /// Writes what differs from process to process into the prepared texts.
    fn patch(&mut self, generation: Generation, stress: bool) {
        let text = format!("{GENERATION_ENV}={generation}\0");
        if let Some(room) = self.env.last_mut() {
            room[..text.len()].copy_from_slice(text.as_bytes());
        }
        if let Some(byte) = self.stress.and_then(|i| self.args[i].get_mut("stress=".len())) {
            *byte = if stress { b'y' } else { 0 };
        }
        let pointer = |text: &Vec<u8>| text.as_ptr().cast::<c_char>();
        self.argv.clear();
        self.argv.extend(self.args.iter().map(pointer));
        self.argv.push(ptr::null());
        self.envp.clear();
        self.envp.extend(self.env.iter().map(pointer));
        self.envp.push(ptr::null());
        self.shell_argv.clear();
        self.shell_argv.extend([SHELL.as_ptr(), self.path.as_ptr()]);
        self.shell_argv.extend(self.args.iter().skip(1).map(pointer));
        self.shell_argv.push(ptr::null());
    }
}

/// Runs a text without `#!`, as execvp(3) does (F03).
const SHELL: &CStr = c"/bin/sh";

/// The descriptors a child gets by number, in their places; dropping it frees the places.
struct Slots {
    end: RawFd,
}

impl Slots {
    fn fill(status: BorrowedFd<'_>, listen: &[BorrowedFd<'_>]) -> io::Result<Self> {
        let mut slots = Self { end: STATUS_FD };
        for fd in std::iter::once(&status).chain(listen) {
            debug_assert!(is_closed(slots.end), "descriptor {} is in the way", slots.end);
            place(fd.as_raw_fd(), slots.end)?;
            slots.end += 1;
        }
        debug_assert!(slots.end <= HIGH_FD && slots.end >= LISTEN_FD, "bounded by MAX_LISTEN");
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

/// What the child is to do; it lives on the sleeping parent's stack.
struct Order {
    path: *const c_char,
    argv: *const *const c_char,
    shell_argv: *const *const c_char,
    envp: *const *const c_char,
    first_unused: c_uint,
    files: libc::rlimit,
    error: AtomicI32,
}

/// The child between clone and exec: system calls alone, no memory of its own but the stack.
extern "C" fn child(order: *mut c_void) -> c_int {
    // SAFETY: spawn passes a pointer to its Order and sleeps while this runs.
    let order = unsafe { &*order.cast::<Order>() };
    // SAFETY: takes numbers only. The table becomes the child's own, without what lies above.
    let closed = unsafe {
        let last = c_uint::MAX;
        libc::syscall(libc::SYS_close_range, order.first_unused, last, libc::CLOSE_RANGE_UNSHARE)
    };
    if closed == -1 {
        // Going on would close and open descriptors in the parent's table.
        order.error.store(Errno::last_raw(), Ordering::Relaxed);
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
    // SAFETY: the texts end with null bytes and the arrays with null pointers (see `patch`).
    unsafe { libc::execve(order.path, order.argv, order.envp) };
    let error = Errno::last_raw();
    if error == libc::ENOEXEC {
        // SAFETY: as above.
        unsafe { libc::execve(SHELL.as_ptr(), order.shell_argv, order.envp) };
    }
    order.error.store(error, Ordering::Relaxed);
    // Returning makes the C library call _exit(2): no handler of the parent runs.
    1
}

/// Puts a copy of an open file at a number, inherited by children.
fn place(from: RawFd, number: RawFd) -> io::Result<()> {
    // SAFETY: dup2 takes numbers; the callers own what they replace.
    check(unsafe { libc::dup2(from, number) }).map(drop)
}

fn is_closed(number: RawFd) -> bool {
    // SAFETY: F_GETFD takes any number and touches no memory.
    unsafe { libc::fcntl(number, libc::F_GETFD) == -1 }
}

/// Gives up a descriptor's ownership and tells its number, for a library that takes numbers.
#[must_use]
pub fn release(fd: OwnedFd) -> RawFd {
    fd.into_raw_fd()
}

fn check(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_long(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn check_handler(result: libc::sighandler_t) -> io::Result<()> {
    if result == libc::SIG_ERR { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_high_descriptor_is_high_and_closed_on_exec() {
        let fd = set_high(OwnedFd::from(std::fs::File::open("/dev/null").unwrap())).unwrap();
        assert!(fd.as_raw_fd() >= HIGH_FD);
        assert_eq!(fcntl(&fd, FcntlArg::F_GETFD).unwrap(), libc::FD_CLOEXEC);
    }
}
