use std::process::ExitCode;

fn main() -> ExitCode {
    flanneld::cli::main()
}
