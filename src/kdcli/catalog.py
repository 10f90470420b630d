"""Every built-in loss, source and metric: name -> "module:Class"."""

LOSSES = {
    "ce": "kdcli.losses.ce:CrossEntropy",
    "soft_ce": "kdcli.losses.ce:SoftCrossEntropy",
    "fkl": "kdcli.losses.kl:ForwardKL",
    "rkl": "kdcli.losses.kl:ReverseKL",
    "sym_kl": "kdcli.losses.kl:SymmetricKL",
    "jsd": "kdcli.losses.jsd:JensenShannon",
    "skl": "kdcli.losses.skew:SkewForwardKL",
    "srkl": "kdcli.losses.skew:SkewReverseKL",
    "tvd": "kdcli.losses.tvd:TotalVariation",
    "ab": "kdcli.losses.alpha_beta:AlphaBeta",
    "mse_logits": "kdcli.losses.mse_logits:LogitsMSE",
    "akl": "kdcli.losses.akl:AdaptiveKL",
    "tkd": "kdcli.losses.decoupled:TargetKD",
    "dkd_div": "kdcli.losses.decoupled:DiversityKD",
    "decoupled": "kdcli.losses.decoupled:DecoupledKD",
    "atkd": "kdcli.losses.atkd:AdaptiveTeachingKD",
}

LOSS_ALIASES = {
    "forward_kl": "fkl",
    "kl": "fkl",
    "kld": "fkl",
    "kd": "fkl",
    "reverse_kl": "rkl",
    "symmetric_kl": "sym_kl",
    "jeffreys": "sym_kl",
    "js": "jsd",
    "skew_kl": "skl",
    "skew_forward_kl": "skl",
    "skew_reverse_kl": "srkl",
    "tv": "tvd",
    "total_variation": "tvd",
    "alpha_beta": "ab",
    "abkd": "ab",
    "adaptive_kl": "akl",
    "nckd": "dkd_div",
    "tckd": "tkd",
    "decoupled_kd": "decoupled",
    "mse": "mse_logits",
    "cross_entropy": "ce",
    "sft": "ce",
}

SOURCES = {"dataset": "kdcli.sources.dataset:DatasetSource"}

METRICS = {
    "rougeL": "kdcli.metrics.rouge:RougeL",
    "exact_match": "kdcli.metrics.exact_match:ExactMatch",
    "perplexity": "kdcli.metrics.perplexity:Perplexity",
    "ece": "kdcli.metrics.calibration:Calibration",
    "kl_to_teacher": "kdcli.metrics.teacher_kl:KLToTeacher",
    "agreement": "kdcli.metrics.agreement:Agreement",
    "distinct": "kdcli.metrics.distinct:Distinct",
    "length": "kdcli.metrics.length:Length",
}

METRIC_ALIASES = {
    "rouge": "rougeL",
    "rouge_l": "rougeL",
    "em": "exact_match",
    "ppl": "perplexity",
    "calibration": "ece",
    "kl": "kl_to_teacher",
    "token_agreement": "agreement",
    "len": "length",
}
