//! Several devices. Real ones are not needed: the CPU twice, or Mesa's software Vulkan listed
//! twice.

use burn::DispatchDevice;
use itemlm::config::DecodeConfig;
use itemlm::data::Split;
use itemlm::evaluate::Outcome;
use itemlm::run::Session;
use itemlm::run::rank_windows;

use crate::lab::Lab;

/// Returns two devices of each backend.
fn pairs() -> Vec<[DispatchDevice; 2]> {
    vec![
        #[cfg(feature = "cpu")]
        [DispatchDevice::Flex(Default::default()), DispatchDevice::Flex(Default::default())],
        #[cfg(feature = "wgpu")]
        {
            use burn::backend::wgpu::WgpuDevice;
            let adapters = itemlm::device::BackendName::Wgpu.adapters().unwrap();
            let software = adapters.iter().any(|adapter| adapter.used && adapter.kind == "software");
            let second = if software { WgpuDevice::Cpu } else { WgpuDevice::DefaultDevice };
            [DispatchDevice::Wgpu(WgpuDevice::DefaultDevice), DispatchDevice::Wgpu(second)]
        },
    ]
}

#[test]
fn two_devices_rank_as_one() {
    let lab = Lab::new();
    // This process is elsewhere.
    let [corpus, llm] = ["corpus", "llm"].map(|name| lab.path(name).display().to_string());
    let prior = "--set prior.ranker=markov --set prior.weight=0.3";
    lab.ok(&format!(
        "train run.toml --out run --ui none --max-steps 5 --set data.corpus={corpus} --set llm.path={llm} {prior}"
    ));
    for [first, second] in pairs() {
        let run = Session::open(&lab.path("run"), &first).unwrap();
        assert!(run.context.prior.is_some());
        let windows: Vec<_> = (0..).zip(run.context.corpus.windows(Split::Test).iter().copied()).collect();
        // So many beams that the users are several batches.
        let decode = DecodeConfig { beams: 20, ..run.config.decode.clone() };
        let rank = |models: &[_], stop_at: usize| {
            let mut go_on = |done: usize, total: usize| done < stop_at || done == total;
            rank_windows(models, &run.context, Split::Test, &windows, &decode, &mut go_on).unwrap()
        };
        let one = rank(std::slice::from_ref(&run.model), usize::MAX).unwrap();
        let two = rank(&[run.model.clone(), run.model.clone_to_device(&second)], usize::MAX).unwrap();
        assert_eq!((one.outcomes.len(), one.lists.len()), (windows.len(), windows.len()));
        let in_order = |(outcome, (window, _)): (&Outcome, &(u32, _))| outcome.window == *window;
        assert!(one.outcomes.iter().zip(&windows).all(in_order), "in the order given");
        assert_eq!(one, two);
        assert_eq!(rank(&[run.model.clone(), run.model.clone_to_device(&second)], 0), None, "told to stop");
    }
}

#[test]
fn commands_of_one_device() {
    let lab = Lab::new();
    for line in [
        "train run.toml --profile",
        "quickstart --out quick",
        "recommend corpus --history x",
        "score --llm llm --catalogue titles.txt --input in.jsonl",
        "cf bpr corpus --out vectors.safetensors",
        "baseline sasrec corpus",
    ] {
        lab.assert_refused(
            &format!("{line} --backend wgpu:0,1"),
            2,
            &["--backend wgpu:0,1", "one device", "`train`", "`evaluate`"],
        );
    }
}

/// Trained on two devices as on one, on which it goes on; ranked by two as by one.
/// Before the first step the run's own gradients are compared with the CPU's, for an adapter, all
/// weights and a frozen model with an encoder; once for a device, program and model.
#[cfg(feature = "wgpu")]
#[test]
fn gradients_are_compared_with_the_cpus() {
    let lab = Lab::new();
    if !std::path::Path::new("/usr/share/vulkan/icd.d").is_dir() {
        return eprintln!("no Vulkan: not tested");
    }
    lab.ok("cf als corpus --out als.safetensors --set dim=4");
    let train = |line: &str| {
        let mut command = lab.command(&format!("train run.toml --max-steps 1 --backend wgpu --ui plain {line}"));
        command.envs([("XDG_CACHE_HOME", lab.path("cache")), ("XDG_RUNTIME_DIR", lab.path(""))]);
        let output = crate::lab::succeeded(line, command.output().unwrap());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let check = |run: &str| -> serde_json::Value {
        let metrics = String::from_utf8(lab.read(&format!("{run}/metrics.jsonl"))).unwrap();
        serde_json::from_str::<serde_json::Value>(metrics.lines().next().unwrap()).unwrap()["device_check"].clone()
    };
    let vectors = "--set items.encoder=mlp --set items.vectors=als.safetensors --set llm.tune=frozen";
    for (run, set) in [("lora", ""), ("full", "--set llm.tune=full"), ("frozen", vectors)] {
        let stderr = train(&format!("--out {run} {set}"));
        assert!(stderr.contains("equal the CPU's"), "{run}: {stderr}");
        // Sums of f32 in another order.
        let difference = check(run)["gradient_difference"].as_f64();
        assert!(difference.is_some_and(|difference| difference < 1e-4), "{run}: {}", check(run));
        assert_eq!(check(run)["tracked_input"], false);
    }
    let stderr = train("--out again");
    assert!(!stderr.contains("equal the CPU's"), "it is compared once: {stderr}");
    assert_eq!(check("again"), check("lora"));
    assert!(train("--out trusted --trust-device").contains("not compared"));
    assert_eq!(check("trusted"), "trusted");
    let evaluate = |line: &str| {
        let mut command = lab.command(&format!("evaluate lora --backend wgpu {line}"));
        command.envs([("XDG_CACHE_HOME", lab.path("cache")), ("XDG_RUNTIME_DIR", lab.path(""))]);
        String::from_utf8_lossy(&crate::lab::succeeded(line, command.output().unwrap()).stderr).into_owned()
    };
    assert!(!evaluate("--trust-device").contains("equal the CPU's"));
    assert!(evaluate("").contains("scores of 2 windows equal the CPU's"));
    assert!(!evaluate("").contains("equal the CPU's"), "they are compared once");
    let recommend = |line: &str| {
        let mut command = lab.command(&format!("recommend lora --backend wgpu -k 1 {line}"));
        command.args(["--history", "Red Pen 0"]);
        command.envs([("XDG_CACHE_HOME", lab.path("other-cache")), ("XDG_RUNTIME_DIR", lab.path(""))]);
        String::from_utf8_lossy(&crate::lab::succeeded(line, command.output().unwrap()).stderr).into_owned()
    };
    assert!(!recommend("--trust-device").contains("equal the CPU's"));
    assert!(recommend("").contains("scores of 2 windows equal the CPU's"));
    lab.ok("train run.toml --max-steps 1 --out cpu");
    assert!(check("cpu").is_null());
}

#[cfg(feature = "wgpu")]
#[test]
fn two_devices_on_the_command_line() {
    let mut drivers =
        std::fs::read_dir("/usr/share/vulkan/icd.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let software =
        drivers.find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("lvp_icd")));
    let Some(software) = software else { return eprintln!("no software Vulkan of Mesa's: not tested") };
    let lab = Lab::new();
    let copies = ["a.json", "b.json"].map(|name| {
        lab.write(name, std::fs::read(&software).unwrap());
        lab.path(name).display().to_string()
    });
    let ok = |line: &str| {
        let mut command = lab.command(line);
        command.env("VK_DRIVER_FILES", copies.join(":")).env("XDG_RUNTIME_DIR", lab.path(""));
        crate::lab::succeeded(line, command.output().unwrap())
    };
    // 5 steps an epoch: the second run validates on two devices and goes on, on one.
    ok("train run.toml --out one --ui none --max-steps 6 --backend wgpu");
    let output = ok("train run.toml --out two --ui plain --max-steps 5 --backend wgpu:0,1");
    assert!(String::from_utf8_lossy(&output.stderr).contains("2 devices share each step"));
    ok("train run.toml --out two --ui none --max-steps 6 --resume --backend wgpu:1");
    let (one, two) = (lab.losses("one"), lab.losses("two"));
    assert_eq!((one.len(), two.len()), (6, 6));
    one.iter().zip(&two).for_each(|(one, two)| assert!((one - two).abs() <= 1e-5, "{one} and {two}"));

    let [one, two] = ["wgpu", "wgpu:1,0"].map(|backend| {
        crate::lab::document(&ok(&format!("evaluate two --beams 20 --json --backend {backend}")))["metrics"].clone()
    });
    assert_eq!(one, two);
    let mut command = lab.command("evaluate two --backend wgpu:0,llvmpipe");
    command.env("VK_DRIVER_FILES", &copies[0]).env("XDG_RUNTIME_DIR", lab.path(""));
    lab.refuses(&mut command, "evaluate --backend wgpu:0,llvmpipe", 2, &["named twice", "llvmpipe"]);
}
