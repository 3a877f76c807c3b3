//! A file system of a test's own, which can be frozen: whoever changes anything on it then waits, beyond any signal's reach.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::netns::output;

pub struct Disk {
    dir: PathBuf,
    /// Thaws and unmounts if the test is killed before it can.
    rescue: Child,
}

impl Disk {
    /// Mounts an empty one at `dir`, which is made.
    pub fn mount(dir: &Path) -> Disk {
        let image = dir.with_extension("image");
        fs::create_dir_all(dir).expect("a directory");
        fs::File::create(&image).and_then(|file| file.set_len(16 << 20)).expect("an image");
        for words in [
            vec!["mkfs.ext4".into(), "-q".into(), image.display().to_string()],
            vec!["mount".into(), "-o".into(), "loop".into(), image.display().to_string(), dir.display().to_string()],
        ] {
            output(Command::new(&words[0]).args(&words[1..])).unwrap_or_else(|error| panic!("{words:?}: {error}"));
        }
        let rescue = "sleep 300; fsfreeze -u \"$0\"; umount -l \"$0\"";
        let mut command = Command::new("sh");
        command.args(["-c", rescue]).arg(dir).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Disk { dir: dir.to_owned(), rescue: command.spawn().expect("a shell") }
    }

    pub fn freeze(&self) {
        output(Command::new("fsfreeze").arg("-f").arg(&self.dir)).expect("fsfreeze");
    }

    pub fn thaw(&self) {
        output(Command::new("fsfreeze").arg("-u").arg(&self.dir)).expect("fsfreeze");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("-u").arg(&self.dir).output();
        let _ = Command::new("umount").arg("-l").arg(&self.dir).output();
        let group = nix::unistd::Pid::from_raw(self.rescue.id().cast_signed());
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        let _ = self.rescue.wait();
    }
}
