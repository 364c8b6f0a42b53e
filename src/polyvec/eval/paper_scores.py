"""Scores of jina-embeddings-v3 from its paper (arXiv:2409.10173), times 100, for comparison.

The scores by task come from table A3, and those of LongEmbed from table 5. Task names are mteb's.
"""

PAPER_SCORES = {
    "AmazonCounterfactualClassification": 89.49,
    "AmazonPolarityClassification": 95.38,
    "AmazonReviewsClassification": 49.77,
    "ArguAna": 54.33,
    "AskUbuntuDupQuestions": 65.04,
    "BIOSSES": 88.69,
    "Banking77Classification": 84.08,
    "ClimateFEVER": 42.36,
    "DBPedia": 41.00,
    "EmotionClassification": 73.30,
    "FEVER": 89.06,
    "FiQA2018": 47.35,
    "HotpotQA": 64.67,
    "ImdbClassification": 91.90,
    "LEMBNarrativeQARetrieval": 33.32,
    "LEMBNeedleRetrieval": 84.00,
    "LEMBPasskeyRetrieval": 100.00,
    "LEMBQMSumRetrieval": 39.75,
    "LEMBSummScreenFDRetrieval": 92.78,
    "LEMBWikimQARetrieval": 72.46,
    "MSMARCO": 40.82,
    "MTOPDomainClassification": 97.49,
    "MTOPIntentClassification": 84.53,
    "MassiveIntentClassification": 77.60,
    "MassiveScenarioClassification": 84.71,
    "NFCorpus": 36.62,
    "NQ": 64.23,
    "QuoraRetrieval": 89.09,
    "SCIDOCS": 19.81,
    "SICK-R": 89.62,
    "STS12": 82.44,
    "STS13": 89.49,
    "STS14": 84.94,
    "STS15": 89.31,
    "STS16": 86.84,
    "STSBenchmark": 89.44,
    "SciDocsRR": 84.88,
    "SciFact": 72.31,
    "SprintDuplicateQuestions": 96.98,
    "TRECCOVID": 77.72,
    "Touche2020": 26.30,
    "ToxicConversationsClassification": 91.28,
    "TweetSentimentExtractionClassification": 71.39,
    "TwitterSemEval2015": 70.91,
    "TwitterURLCorpus": 84.13,
}

PAPER_TASKS = {
    "stsb-dev": ("STSBenchmark", "en", "test split of the same data"),
    "banking77-dev": ("Banking77Classification", "en", "test split of the same data"),
    "needle-256": ("LEMBNeedleRetrieval", "en", "nDCG@10, other needles"),
    "passkey-256": ("LEMBPasskeyRetrieval", "en", "nDCG@10, other passkeys"),
    "qmsum-val": ("LEMBQMSumRetrieval", "en", "test split of the same data"),
}
"""Task folders that resemble one of the paper's tasks: its name, the language that is compared, and
how the two differ."""

PAPER_SIZES = (32, 64, 128, 256, 512, 768, 1024)

PAPER_DIMS = {
    "retrieval": (52.54, 58.54, 61.64, 62.72, 63.16, 63.30, 63.35),
    "STS": (76.35, 77.03, 77.43, 77.56, 77.59, 77.59, 77.58),
}
"""Table 7: mean scores at each of the dims in `PAPER_SIZES`, by column of our report."""
