//! walgate with one more kind of sink: `file`. The command line, the configuration and the other sinks are walgate's.

mod lines;
mod sink;

fn main() -> std::process::ExitCode {
    walgate::app::App::new().with_sink::<sink::FileSinkFactory>().run()
}
