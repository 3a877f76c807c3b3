//! A kernel under qemu. It needs no virtualisation by hardware: the processor is emulated.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::apt::Kernel;
use crate::interrupt;
use crate::run::Failure;

/// Bytes of memory, in the form of qemu. Ten thousand peers and their tests fit in.
const MEMORY: &str = "1536M";

/// The emulation of newer processors is slower, because libraries use their wide registers.
const PROCESSOR: &str = "Nehalem";

/// Without random addresses, programs that start again find their code translated: they start twice as fast.
const COMMAND_LINE: &str = "console=ttyS0 loglevel=6 panic=-1 net.ifnames=0 mitigations=off norandmaps";

/// What a guest boots.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Boot {
    /// The job, as the first process.
    Job,
    /// The machine's systemd, and the job as a service.
    Systemd,
}

/// A kernel that runs. It ends with this value, and also when this program is killed.
pub struct Guest {
    qemu: Child,
    lines: Receiver<String>,
    console: PathBuf,
    deadline: Instant,
    limit: Duration,
}

impl Guest {
    /// Boots `kernel`. The guest sees the machine's files as they are now, and its writes are lost.
    pub fn boot(kernel: &Kernel, boot: Boot, initramfs: &Path, limit: Duration) -> Result<Guest, Failure> {
        let console = initramfs.with_extension("console");
        let mut command = command(kernel, boot, initramfs, &console);
        // The input stays open: its end would unplug the port.
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawned = command.spawn();
        let mut qemu = spawned.map_err(|error| Failure(format!("setpriv: {error}; it belongs to util-linux")))?;
        let output = qemu.stdout.take().expect("a pipe");
        let (sender, lines) = channel();
        thread::spawn(move || {
            let lines = BufReader::new(output).split(b'\n').map_while(Result::ok);
            lines.map(|line| String::from_utf8_lossy(&line).into_owned()).all(|line| sender.send(line).is_ok())
        });
        Ok(Guest { qemu, lines, console, deadline: Instant::now() + limit, limit })
    }

    /// The next line that the job prints; none at the end of the guest.
    pub fn line(&mut self) -> Result<Option<String>, Failure> {
        loop {
            match self.lines.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => return Ok(Some(line.trim_end_matches('\r').to_owned())),
                Err(RecvTimeoutError::Disconnected) => return Ok(None),
                Err(RecvTimeoutError::Timeout) if interrupt::is_set() => return Err(Failure("interrupted".to_owned())),
                Err(RecvTimeoutError::Timeout) if Instant::now() > self.deadline => {
                    return Err(Failure(format!("it did not end within {} minutes", self.limit.as_secs() / 60)));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// The end of what the kernel printed, and what qemu complained of.
    pub fn console(&mut self) -> String {
        const LINES: usize = 60;
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        let text = String::from_utf8_lossy(&fs::read(&self.console).unwrap_or_default()).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        let errors = self.qemu.stderr.take().and_then(|errors| std::io::read_to_string(errors).ok());
        let end = lines[lines.len().saturating_sub(LINES)..].join("\n");
        format!("{end}\n{}", errors.unwrap_or_default())
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The command line of qemu. The job's output is the standard output, the kernel's messages go to `console`.
fn command(kernel: &Kernel, boot: Boot, initramfs: &Path, console: &Path) -> Command {
    let share = |name: &str, path: &Path| {
        format!("local,path={},mount_tag={name},security_model=none,readonly=on,multidevs=remap", path.display())
    };
    let job = match boot {
        Boot::Job => "",
        Boot::Systemd => " JOB=service systemd.unit=flanneld-test.target systemd.show_status=false",
    };
    // This machine's kernel ends qemu when the thread that started it has ended.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot"]);
    command.args(["-display", "none", "-machine", "q35,accel=tcg", "-cpu", PROCESSOR, "-m", MEMORY, "-smp", "1"]);
    command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(initramfs);
    command.args(["-append", &format!("{COMMAND_LINE}{job}")]);
    command.args(["-serial", &format!("file:{}", console.display()), "-device", "virtio-rng-pci"]);
    command.args(["-device", "virtio-serial", "-chardev", "stdio,id=job,signal=off"]);
    command.args(["-device", "virtserialport,chardev=job,name=job"]);
    command.args(["-virtfs", &share("machine", Path::new("/"))]);
    command.args(["-virtfs", &share("modules", &kernel.folder().join("lib/modules"))]);
    command
}
