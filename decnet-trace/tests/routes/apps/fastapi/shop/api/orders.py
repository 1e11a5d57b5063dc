from fastapi import APIRouter

router = APIRouter(prefix="/orders")


@router.get("")
@router.get("/{order_id}/lines/{line}")
async def lines(order_id: str = "", line: str = ""):
    return order_id


async def added(code: str):
    return code


router.add_api_route("/by-code/{code}", added, methods=["GET"])
