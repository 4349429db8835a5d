"""Toolkits that tests write."""

HEADERS = ("cuda_runtime_api.h", "crt/host_config.h", "cuda_fp16.h", "nv/target")


def make_toolkit(top, version="13.0", nvcc="13.0.88", of_headers=None, without=(), library="lib64"):
    """A folder that answers as a toolkit does."""
    script = f"""#!/bin/sh
[ "$1" = --version ] && echo "Cuda compilation tools, release {version}, V{nvcc}"
[ "$1" = --list-gpu-code ] && printf 'sm_70\\nsm_75\\nsm_80\\nsm_86\\nsm_90\\nsm_100\\n'
[ "$1 $2" = "--dryrun -ccbin" ] && echo "#$ TOP={top}/bin/.." >&2 && echo "#$ CICC_PATH={top}/bin/../nvvm/bin" >&2
exit 0
"""
    number = (of_headers or version + ".0").split(".")
    files = {"bin/nvcc": script, "nvvm/bin/cicc": "", f"{library}/libcudart.so.13": ""} | {
        f"include/{h}": "" for h in HEADERS
    }
    files["include/cuda_runtime_api.h"] = f"#define CUDART_VERSION  {number[0]}0{number[1]}0\n"
    for name, text in files.items():
        if name not in without:
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(text)
            (top / name).chmod(0o755)
    return top
