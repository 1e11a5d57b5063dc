from fastapi import APIRouter, Depends

router = APIRouter(
    dependencies=[Depends(lambda: None)],
)


@router.get("/me")
async def me():
    return "me"


@router.get(
    "/{user_id}",
    summary="One user",
)
def one(user_id: str):
    return user_id


@router.delete("/{user_id}")
def gone(user_id: str):
    return user_id
