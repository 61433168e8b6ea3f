//! The walgate binary.

fn main() -> std::process::ExitCode {
    walgate::app::App::new().run()
}
