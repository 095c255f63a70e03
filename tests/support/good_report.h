// A whole report.json with no more than is read of it, for the tests of its reader.
#pragma once

static const char GOOD_REPORT[] =
    "{\"schema\": 4, \"command\": \"parity\", \"model\": {\"name\": \"m\", \"fingerprint\": "
    "\"00000000000000aa\","
    " \"n_layers\": 2}, \"machine\": {\"cpu\": \"c\", \"hosts\": 1}, \"build\": {\"version\": \"0.1.0\", "
    "\"row\":"
    " \"portable\"}, \"run\": {\"config\": \"run.arms = [\\\"q8k@cpu\\\"]\\nrun.generate = 2\\nrun.seed = "
    "1\\n\","
    " \"kv\": \"f16\", \"input\": \"00000000000000bb\", \"routes\": null, \"context\": 9, \"skip\": null}, "
    "\"ranks\": [{}, {}],"
    " \"arms\": [{\"name\": \"q8k@cpu\", \"path\": \"q8k\", \"path_version\": 1, \"expert_paths\":"
    " \"00000000000000cc\", \"digest\": \"0000000000000000\", \"ranks\": 2, \"layer_digests\":"
    " [\"0000000000000001\", \"0000000000000002\"], \"sequences\": [{\"tokens\": 3, \"digest\":"
    " \"ffffffffffffffff\"}, {\"tokens\": 4, \"digest\": \"0000000000000001\"}], \"generated\": "
    "[{\"sequence\": 0,"
    " \"tokens\": [5, 6], \"digest\": \"0000000000000003\"}, {\"sequence\": 1, \"tokens\": [], \"digest\":"
    " \"0000000000000004\"}]}, {\"name\": \"f64@cpu\", \"path\": \"f64\", \"path_version\": 1, "
    "\"expert_paths\":"
    " \"00000000000000dd\", \"digest\": \"0000000000000007\", \"ranks\": 2, \"layer_digests\":"
    " [\"0000000000000005\", \"0000000000000006\"], \"sequences\": [{\"tokens\": 3, \"digest\":"
    " \"0000000000000003\"}, {\"tokens\": 4, \"digest\": \"0000000000000004\"}], \"generated\": []}],"
    " \"complete\": true}";
