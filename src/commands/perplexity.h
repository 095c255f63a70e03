// perplexity: how well each arm predicts a long text, in windows of run.context tokens.
//
// Definition (that of llama.cpp's tool, so that figures are comparable): windows do not overlap, a last part
// that does not fill a window is left out (unless the text is shorter than one), and in each window the
// tokens after position perplexity.skip (half of the window) are scored, each given all before it in the
// window.
#pragma once
#include "src/report/job_report.h"

status perplexity_run(job *j); // collective
