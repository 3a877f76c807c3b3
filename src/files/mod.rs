//! The files that flanneld reads and writes: each complete or not at all. The daemon waits for no disk: see [`background`].

pub mod background;
mod env;
mod state;

pub use background::FileIo;
pub(crate) use background::Task;
pub use env::EnvFiles;
pub use state::StateFile;

use nix::libc;
use std::fs::{self, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The start of the names of temporary files.
const TEMPORARY: &str = ".flanneld-";

/// No file of ours comes near this size.
const LARGEST: u64 = 1 << 20;

/// The content of a file. A FIFO or a device, which may never come to an end, is refused, and so is a file too large
/// to be one of ours.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path)?;
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    if !metadata.is_file() {
        return Err(not_a_file());
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST {
        return Err(io::Error::other("it is larger than 1 MiB"));
    }
    Ok(bytes)
}

fn not_a_file() -> io::Error {
    io::Error::other("it is not a regular file")
}

/// Puts `text` at `path`, whole or not at all, readable by everyone: a temporary file beside it, flushed to the disk,
/// renamed. Directories are made; a symbolic link is followed, not replaced, and nor is a device or a FIFO.
pub fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let target = follow_links(path)?;
    if fs::symlink_metadata(&target).is_ok_and(|metadata| !metadata.is_file() && !metadata.is_dir()) {
        return Err(not_a_file());
    }
    let directory = directory_of(&target);
    fs::create_dir_all(directory)?;
    let mut file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(directory).map_err(bare)?;
    // Shows `remove_leftovers` that somebody still writes it. Not every file system has locks.
    let _ = file.as_file().try_lock();
    file.as_file_mut().write_all(text.as_bytes())?;
    file.as_file().set_permissions(Permissions::from_mode(0o644))?;
    file.as_file().sync_all()?;
    file.persist(&target).map_err(|error| error.error)?;
    fs::File::open(directory)?.sync_all()
}

/// The temporary files in a directory, be they in use or left by writers that were killed.
fn temporary_files(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let is_temporary = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(TEMPORARY);
    entries.filter(is_temporary).map(|entry| entry.path())
}

fn has_leftovers(directory: &Path) -> bool {
    temporary_files(directory).next().is_some()
}

/// Removes the temporary files in a directory that writers left which were killed.
fn remove_leftovers(directory: &Path) {
    for path in temporary_files(directory) {
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW).open(&path);
        let is_left = file
            .as_ref()
            .is_ok_and(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()) && file.try_lock().is_ok());
        if is_left {
            // One that stays is looked at again at the next start.
            let _ = fs::remove_file(&path);
        }
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The error without the name of the temporary file, which is another one each time: the reason is not.
fn bare(error: io::Error) -> io::Error {
    error.kind().into()
}

/// The path behind symbolic links, the last of which may point to nothing yet.
fn follow_links(path: &Path) -> io::Result<PathBuf> {
    const MOST: usize = 40;
    let mut target = path.to_owned();
    for _ in 0..MOST {
        match fs::read_link(&target) {
            Ok(next) => target = target.parent().unwrap_or(Path::new("")).join(next),
            Err(_) => return Ok(target),
        }
    }
    Err(io::Error::other("too many levels of symbolic links"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_file_goes_unless_somebody_writes_it() {
        let dir = tempfile::tempdir().unwrap();
        let [left, written, other] =
            [".flanneld-left", ".flanneld-written", "flanneld"].map(|name| dir.path().join(name));
        for path in [&left, &written, &other] {
            fs::write(path, "half").unwrap();
        }
        std::os::unix::fs::symlink("flanneld", dir.path().join(".flanneld-link")).unwrap();
        let writer = fs::File::open(&written).unwrap();
        writer.lock().unwrap();
        remove_leftovers(dir.path());
        assert!(!left.exists() && written.exists() && other.exists());
        drop(writer);
        remove_leftovers(dir.path());
        assert!(!written.exists() && dir.path().join(".flanneld-link").exists());
    }
}
