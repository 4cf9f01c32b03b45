//! `train --plan`, and devices whose memory gives out.

use itemlm::device::{Adapter, BackendName};

use crate::lab::{Lab, snapshot, write_llm_as};

#[test]
fn a_plan_counts_and_changes_nothing() {
    let lab = Lab::new();
    let before = snapshot(&lab.path(""));
    let plan = lab.json("train run.toml --plan");
    let text = String::from_utf8(lab.ok("train run.toml --plan").stdout).unwrap();
    assert_eq!(snapshot(&lab.path("")), before, "a plan leaves nothing behind");
    let number =
        |pointer: &str| plan.pointer(pointer).and_then(|v| v.as_u64()).unwrap_or_else(|| panic!("{pointer}: {plan}"));

    // Two layers: q [16, 16], k and v [8, 16], o [16, 16], gate and up [32, 16], down [16, 32];
    // LoRA of rank 4 on q and v.
    let vocabulary = itemlm::model::open_llm(&lab.path("llm")).unwrap().config.vocab_size as u64;
    let projections = 2 * (2 * 16 * 16 + 2 * 8 * 16 + 3 * 32 * 16);
    let (embeddings, adapters) = (vocabulary * 16 + 5 * 16, 2 * 4 * (16 + 16 + 16 + 8));
    assert_eq!((number("/parameters/trained"), number("/parameters/frozen")), (adapters, projections + embeddings));
    assert_eq!((number("/weights/projections"), number("/weights/embeddings")), (4 * projections, 4 * embeddings));
    assert_eq!(
        (number("/weights/adapters"), number("/weights/head"), number("/weights/encoder")),
        (4 * adapters, 0, 0)
    );
    assert_eq!(number("/optimizer_bytes"), 8 * adapters);
    let halved = lab.json("train run.toml --plan --set llm.precision=\"bf16\"");
    assert_eq!(halved["weights"]["projections"], 2 * projections);
    assert_eq!((&halved["weights"]["embeddings"], &halved["fits"]), (&plan["weights"]["embeddings"], &plan["fits"]));
    let full = lab.json("train run.toml --plan --set llm.tune=\"full\"");
    assert_eq!(full["parameters"]["trained"], projections + embeddings);
    assert!(full["between_steps_bytes"].as_u64() > plan["between_steps_bytes"].as_u64());

    // 40 windows in steps of 8, of which 4 run together.
    assert_eq!((number("/steps_per_epoch"), number("/steps_planned")), (5, 5));
    assert!(number("/step/tokens") > 0 && number("/step/chain") > 0 && number("/ranking/cache") > 0);
    assert!(plan["micro_batch_tokens"].is_null() && plan["fits"] == true, "{plan}");
    for (n, checkpointing) in [false, true].into_iter().enumerate() {
        let largest = &plan["largest"][n];
        assert_eq!((&largest["gradient_checkpointing"], &largest["whole_step"]), (&checkpointing.into(), &true.into()));
    }
    let cut = |tokens: usize| {
        let plan = lab.json(&format!("train run.toml --plan --set train.micro_batch_tokens={tokens}"));
        assert_eq!(plan["micro_batch_tokens"], tokens);
        assert!(plan["step"]["tokens"].as_u64().unwrap() <= tokens as u64, "{plan}");
        plan["step"]["activations"].as_u64().unwrap()
    };
    assert!(cut(60) < cut(120));
    for shown in
        ["weights ", "optimiser state", "activations", "ranking", "fits into", "a whole step", "gradient checkpointing"]
    {
        assert!(text.contains(shown), "{shown:?} is not in {text}");
    }
    for flag in ["--out run", "--resume", "--max-steps 3", "--ui plain", "--profile"] {
        lab.assert_refused(&format!("train run.toml --plan {flag}"), 2, &["--plan", flag.split(' ').next().unwrap()]);
    }
    lab.assert_refused("train none.toml --plan", 1, &["none.toml"]);
    lab.assert_refused("train run.toml --plan --set data.corpus=\"none\"", 1, &["none"]);
}

/// What is between gate and up is too large for a buffer of Mesa's software Vulkan: 128 MiB.
#[test]
fn a_device_without_room_is_one_line_and_the_checkpoint_is_kept() {
    let software = |found: Vec<Adapter>| found.iter().any(|adapter| adapter.used && adapter.kind == "software");
    if !BackendName::Wgpu.adapters().is_ok_and(software) {
        return eprintln!("no software Vulkan in use: not tested");
    }
    let lab = Lab::new();
    write_llm_as(&lab.path("llm"), 3, |config| config.intermediate_size = 300_000);
    lab.ok("train run.toml --out run --max-steps 2 --ui none");
    let checkpoints = lab.checkpoints("run");
    let output = lab.command("train run.toml --out run --resume --ui none --backend wgpu").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    let advice = "in step 3: lower train.micro_batch_size (now 4) or set train.gradient_checkpointing = true; \
                  checkpoint 2 is kept";
    for named in ["error: wgpu ran out of memory (", advice] {
        assert!(last.contains(named), "{named:?} is not in {stderr}");
    }
    assert_eq!(lab.checkpoints("run"), checkpoints);
    let output = lab.command("evaluate run --backend wgpu --beams 5").output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last = stderr.lines().last().unwrap_or_default();
    assert!(
        output.status.code() == Some(1) && last.contains("wgpu ran out of memory (") && last.contains("--beams"),
        "{stderr}"
    );
}
